// SPDX-License-Identifier: Apache-2.0
// Arithmetic between global and local sizes and strides.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <string_view>

#include "tensor/dim_cut.h"
#include "tessera/mesh/mesh.h"

namespace tessera::tensor {

using Sizes = c10::SmallVector<std::int64_t, 6>;

/// The parts of dim `dim` (of global `size`) that this rank holds: chunks of chunks, several if it is cut in groups. The last
/// axis of the mesh cuts first, so that what dp_shard cut of a tensor-parallel shard is gathered without asking the
/// tensor-parallel ranks; the others cut what it left, as it lies one behind the other.
[[nodiscard]] Extents local_runs(std::int64_t size, int dim, const Placements& placements, const Mesh& mesh);

/// How long they are together.
[[nodiscard]] std::int64_t local_length(std::int64_t size, int dim, const Placements& placements, const Mesh& mesh);

/// The same as one part, for who counts from where it begins. Throws Error if the rank holds several.
[[nodiscard]] Extent local_extent(std::int64_t size, int dim, const Placements& placements, const Mesh& mesh);

/// Throws ShapeError naming `operation` if a cut makes no sense for a tensor of `sizes`: groups are equal parts of a whole dim,
/// so they belong to the axis that cuts it first.
void check_cuts(std::string_view operation, at::IntArrayRef sizes, const Placements& placements, const Mesh& mesh);

/// `placements` of a tensor of `sizes` with cuts as canonical_cut() writes them. Only the axis that cuts a dim first can
/// know what it cuts; cuts of others stay as they are.
[[nodiscard]] Placements canonical(Placements placements, at::IntArrayRef sizes, const Mesh& mesh);

/// Sizes of this rank's shard of a tensor of `global_sizes`.
[[nodiscard]] Sizes local_sizes(at::IntArrayRef global_sizes, const Placements& placements, const Mesh& mesh);

/// Strides of row-major memory.
[[nodiscard]] Sizes contiguous_strides(at::IntArrayRef sizes);

/// Dims from the outermost in memory to the innermost.
using DimOrder = c10::SmallVector<std::int64_t, 6>;

/// How the dims of a tensor of these global sizes and strides lie. Where strides do not say (expanded dims, dims of one
/// element), they lie as in what empty_like makes. Shards must not be asked: those of few elements would say another order.
[[nodiscard]] DimOrder memory_order(at::IntArrayRef sizes, at::IntArrayRef strides);

/// Where each dim stands in `order`.
[[nodiscard]] DimOrder inverse(const DimOrder& order);

/// Strides of memory without gaps whose dims lie in `order`.
[[nodiscard]] Sizes dense_strides(at::IntArrayRef sizes, const DimOrder& order);

/// `tensor` with `dense_strides`, to the stride of a dim of one element, by which kernels tell memory formats: itself if it
/// lies so.
[[nodiscard]] at::Tensor in_order(const at::Tensor& tensor, const DimOrder& order);

/// Into how many parts dim `dim` is cut in all.
[[nodiscard]] std::int64_t num_shards(int dim, const Placements& placements, const Mesh& mesh);

/// True if some rank may hold one element or none of a cut dim: its strides say nothing, and all ranks must agree about those
/// of the whole.
[[nodiscard]] bool strides_are_ambiguous(const Placements& placements, const Mesh& mesh, at::IntArrayRef global_sizes);

/// Strides for global metadata that mirror the layout of `local`, so that composite operators which decide by strides
/// (reshape: view or copy?) decide what is right for the shard. Dims keep the order of the local strides; a stride of 0
/// (expanded) stays 0.
[[nodiscard]] Sizes global_strides(const at::Tensor& local, at::IntArrayRef global_sizes);

}  // namespace tessera::tensor
