// SPDX-License-Identifier: Apache-2.0
// Mesh tensors: LibTorch tensors whose value is spread over a mesh.
//
// A mesh tensor is an at::Tensor. Its sizes are global, its device is that of the local shard, autograd, modules and
// optimizers take it as it is, and every ATen operation on it runs on local shards and inserts the collectives that
// the mathematics needs. A plain tensor mixed in counts as replicated: the caller vouches that it is the same on every
// rank.
//
// Every operation may be collective, so every rank calls the same ones, reads among them: item(), full(), print(), comparing
// with torch::equal. Only what is replicated on every axis (the loss that tessera::step returns; full() of anything, which is
// plain) may be read on one rank alone. `if (rank == 0) std::cout << accuracy.item()` waits for the others; read first:
// `const double value = accuracy.item<double>()`.
#pragma once

#include <ATen/core/Tensor.h>

#include <iosfwd>
#include <map>
#include <set>
#include <string>

#include "tessera/mesh/mesh.h"

namespace tessera {

/// Where the value of distribute() comes from.
enum class Source : std::uint8_t {
  kEachRank,  ///< every rank passes the same value; nothing is sent
  kRankZero,  ///< rank 0's value overwrites everyone's (one broadcast)
};

/// Spreads `tensor` (the full value, same sizes and dtype on every rank) over `mesh`.
///
/// Shapes    result has the sizes of `tensor`; rank r keeps the chunks that `placements` give it, cut as torch::chunk
///           cuts, axis by axis, outermost first; chunks may be uneven or empty
/// Gradient  none: the result is a leaf, requires_grad as in `tensor`
/// Lifetime  the local shard is a copy; `tensor` may be freed
/// Throws    ShapeError if a shard dim is not a dim of `tensor`, a placement is Partial, or the count of placements is
///           not the mesh's number of axes
[[nodiscard]] at::Tensor distribute(const at::Tensor& tensor, const Mesh& mesh, const Placements& placements,
                                    Source source = Source::kEachRank);

/// The same in place: `tensor` itself, and everybody who holds it (a module's dictionary, an optimizer), becomes the
/// mesh tensor. Must come before the first forward.
void distribute_(at::Tensor& tensor, const Mesh& mesh, const Placements& placements,
                 Source source = Source::kRankZero);

/// Wraps shards that are already where they belong: `local` is this rank's part of a tensor of `global_sizes`.
/// Throws ShapeError if `local` does not have the sizes that `placements` give this rank.
[[nodiscard]] at::Tensor from_local(const at::Tensor& local, const Mesh& mesh, const Placements& placements,
                                    at::IntArrayRef global_sizes);

[[nodiscard]] bool is_mesh_tensor(const at::Tensor& tensor) noexcept;

/// This rank's part, sharing memory. No gradient. A plain tensor is returned as it is; of a tensor on other pipeline stages,
/// a meta tensor of the part's sizes.
[[nodiscard]] at::Tensor local(const at::Tensor& tensor);

/// The whole value as a plain tensor on every rank. Collective for mesh tensors. No gradient.
[[nodiscard]] at::Tensor full(const at::Tensor& tensor);

/// The same value laid out as `placements`. Collective. Differentiable: the gradient passes through unchanged.
/// Throws ShapeError for a plain tensor.
[[nodiscard]] at::Tensor redistribute(const at::Tensor& tensor, const Placements& placements);

/// Throws ShapeError for a plain tensor.
[[nodiscard]] const Placements& placements(const at::Tensor& tensor);
[[nodiscard]] const Mesh& mesh_of(const at::Tensor& tensor);

/// One line: sizes, dtype, mesh and placements, for instance
/// "[1024, 256] float on dp_replicate=2,tp=2: replicate, shard(0)".
[[nodiscard]] std::string describe(const at::Tensor& tensor);

/// Prints describe() and the full value. Collective for mesh tensors; only ranks with a stream print.
void print(std::ostream& stream, const at::Tensor& tensor);

/// Calls that had no rule and ran gathered and replicated, per operator name ("aten::sort").
[[nodiscard]] const std::map<std::string, std::int64_t>& replicated_fallbacks(const Mesh& mesh);

/// What operators gathered on this rank because no rule of theirs can compute with the shards: `bytes` is what the gathered
/// operands take here beyond their shards.
struct GatherCount {
  std::int64_t times = 0;
  std::int64_t bytes = 0;
};

/// Operands that were cut along an axis and that a call needed whole there, per operator name. What a plan gathers at use
/// (ZeRO 3) does not count, nor do tessera::full and tessera::redistribute.
[[nodiscard]] const std::map<std::string, GatherCount>& gathers(const Mesh& mesh);

/// Names of operators that ran on shards as they lay: at least one call whose decision kept a sharded input sharded.
[[nodiscard]] const std::set<std::string>& sharded_operators(const Mesh& mesh);

}  // namespace tessera
