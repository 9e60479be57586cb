// SPDX-License-Identifier: Apache-2.0
// From one set of placements to another: the only place where operators communicate.
#pragma once

#include <ATen/core/Tensor.h>

#include "tensor/layout.h"
#include "tensor/mesh_storage.h"

namespace tessera::tensor {

/// `local` under placements `from` -> the local part under `to`, of a tensor of `global_sizes` and `global_strides`. What
/// moves lies in memory in the order that these strides say, without gaps. The result may share memory with `local`: for
/// reading only.
[[nodiscard]] at::Tensor redistribute_local(const at::Tensor& local, at::IntArrayRef global_sizes,
                                            at::IntArrayRef global_strides, const Placements& from, const Placements& to,
                                            const Mesh& mesh);

/// The local part of mesh tensor `tensor` under `to`, for reading. A partial value that `to` wants whole is reduced
/// inside the storage, once for everybody who shares it.
[[nodiscard]] at::Tensor read_as(const at::Tensor& tensor, const Placements& to);

/// The same for an operator that computes with the value: what its plan gathers at use may have been gathered ahead.
[[nodiscard]] at::Tensor read_for_use(const at::Tensor& tensor, const Placements& to);

/// Reduces, inside the storage, the partial axes of `tensor` for which `wanted` is not partial.
void reduce_in_storage(const at::Tensor& tensor, const Placements& wanted);

/// A shard on its way to the whole of the dim that it is a part of.
struct ShardRows {
  /// `local` is the shard, of a dim that is cut as `cut` says.
  ShardRows(const at::Tensor& local, std::int64_t dim, const DimCut& cut);
  /// The whole, row-major, of everybody's rows one after the other.
  [[nodiscard]] at::Tensor whole(const at::Tensor& gathered) const;

  at::Tensor rows;  ///< what this rank sends: padded to what the first rank has, `dim` first, contiguous
  std::int64_t dim;
  DimCut cut;
};

/// `local` as the rows that a reduce-scatter cuts: `dim` first, everybody's part after the other, padded to the largest.
[[nodiscard]] at::Tensor rows_to_scatter(const at::Tensor& local, std::int64_t dim, const DimCut& cut);
/// What rank `rank` received of them, without padding and with `dim` where it was.
[[nodiscard]] at::Tensor from_scattered_rows(const at::Tensor& rows, std::int64_t dim, const DimCut& cut, int rank);

/// Bytes that a rank moves to bring one axis from `from` to `to` for a tensor whose shard on all other axes has
/// `bytes`. Source: alpha-beta model without alpha; ring forms of Thakur et al. 2005. What cannot be done is infinite.
[[nodiscard]] double redistribution_bytes(const Placement& from, const Placement& to, double bytes, int axis_size);

}  // namespace tessera::tensor
