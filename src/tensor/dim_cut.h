// SPDX-License-Identifier: Apache-2.0
// A dim that the ranks of one axis hold: who has which runs of it, and tensors taken apart and put together along it.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <utility>
#include <vector>

#include "tessera/mesh/placement.h"

namespace tessera::tensor {

/// Parts of a dim, ascending, with others' parts between them.
using Extents = c10::SmallVector<Extent, 2>;

/// The parts of both.
[[nodiscard]] Extents intersection(const Extents& a, const Extents& b);

/// What lies at `place`, counted in the elements of `extents`, as parts of the whole.
void append_within(Extents& result, const Extents& extents, Extent place);

class DimCut {
 public:
  /// A dim of `size` over `ranks` ranks.
  DimCut(std::int64_t size, Cut cut, int ranks) : size_(size), cut_(cut), ranks_(ranks) {}
  friend bool operator==(const DimCut&, const DimCut&) noexcept = default;

  [[nodiscard]] std::int64_t size() const noexcept { return size_; }
  [[nodiscard]] int ranks() const noexcept { return ranks_; }
  /// How much of the dim `rank` holds.
  [[nodiscard]] std::int64_t length(int rank) const noexcept;
  /// How much of it nobody exceeds.
  [[nodiscard]] std::int64_t largest() const noexcept { return length(0); }
  /// Where that is.
  [[nodiscard]] Extents runs(int rank) const;

  /// What `rank` holds of `whole`; the same memory if it is one run.
  [[nodiscard]] at::Tensor part(const at::Tensor& whole, std::int64_t dim, int rank) const;
  /// For each rank what it holds of the first dim of `whole`, padded to the largest, one after the other.
  [[nodiscard]] at::Tensor padded_parts(const at::Tensor& whole) const;
  /// The whole of what padded_parts() gives; the same memory if there is one group.
  [[nodiscard]] at::Tensor whole(const at::Tensor& padded_parts) const;
  /// What `rank` holds of the first dim of `whole`, padded or not, goes there.
  void copy_part(const at::Tensor& part, int rank, const at::Tensor& whole) const;

 private:
  std::int64_t size_;
  Cut cut_;
  int ranks_;
};

/// `tensor` with zeros behind its last element along `dim`, up to `length`.
[[nodiscard]] at::Tensor pad_dim(const at::Tensor& tensor, std::int64_t dim, std::int64_t length);

/// Pieces by where they belong, joined along `dim`.
using Pieces = std::vector<std::pair<std::int64_t, at::Tensor>>;
[[nodiscard]] at::Tensor joined(Pieces pieces, std::int64_t dim);

/// The one way to write a cut: no unit where there might as well be none, else the first rank's piece of a group. A cut whose
/// groups are unequal stays as it is.
[[nodiscard]] Cut canonical_cut(Cut cut, std::int64_t size, int ranks) noexcept;

}  // namespace tessera::tensor
