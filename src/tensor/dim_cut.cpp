// SPDX-License-Identifier: Apache-2.0
// Taking tensors apart along a dim that is cut, and putting them together.
#include "tensor/dim_cut.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>

#include <algorithm>
#include <limits>

namespace tessera::tensor {
namespace {

void append(Extents& extents, Extent extent) {
  if (extent.length == 0) return;
  const bool continues = !extents.empty() && extents.back().offset + extents.back().length == extent.offset;
  if (continues) {
    extents.back().length += extent.length;
  } else {
    extents.push_back(extent);
  }
}

}  // namespace

Extents intersection(const Extents& a, const Extents& b) {
  Extents result;
  for (std::size_t i = 0, k = 0; i < a.size() && k < b.size();) {
    const std::int64_t begin = std::max(a[i].offset, b[k].offset);
    const std::int64_t a_end = a[i].offset + a[i].length;
    const std::int64_t b_end = b[k].offset + b[k].length;
    if (begin < std::min(a_end, b_end)) append(result, {begin, std::min(a_end, b_end) - begin});
    a_end < b_end ? ++i : ++k;
  }
  return result;
}

void append_within(Extents& result, const Extents& extents, Extent place) {
  for (const Extent& extent : extents) {
    const std::int64_t begin = std::clamp<std::int64_t>(place.offset, 0, extent.length);
    const std::int64_t end = std::clamp<std::int64_t>(place.offset + place.length, 0, extent.length);
    append(result, {extent.offset + begin, end - begin});
    place.offset -= extent.length;
  }
}

std::int64_t DimCut::length(int rank) const noexcept {
  std::int64_t sum = 0;
  for (std::int64_t group = 0; group < cut_.groups; ++group) {
    sum += piece_extent(chunk_extent(size_, cut_.groups, group).length, cut_.unit, ranks_, rank).length;
  }
  return sum;
}

Extents DimCut::runs(int rank) const {
  Extents result;
  for (std::int64_t group = 0; group < cut_.groups; ++group) {
    const Extent all = chunk_extent(size_, cut_.groups, group);
    const Extent piece = piece_extent(all.length, cut_.unit, ranks_, rank);
    append(result, {all.offset + piece.offset, piece.length});
  }
  return result;
}

at::Tensor DimCut::part(const at::Tensor& whole, std::int64_t dim, int rank) const {
  const Extents mine = runs(rank);
  if (mine.empty()) return whole.narrow(dim, 0, 0);
  if (mine.size() == 1) return whole.narrow(dim, mine[0].offset, mine[0].length);
  std::vector<at::Tensor> pieces;
  for (const Extent& run : mine) pieces.push_back(whole.narrow(dim, run.offset, run.length));
  return at::cat(pieces, dim);
}

at::Tensor DimCut::padded_parts(const at::Tensor& whole) const {
  // Parts of one group follow each other, and only the last of them may be short.
  if (cut_.groups == 1) return pad_dim(whole, 0, largest() * ranks_);
  std::vector<at::Tensor> parts;
  for (int rank = 0; rank < ranks_; ++rank) parts.push_back(pad_dim(part(whole, 0, rank), 0, largest()));
  return at::cat(parts);
}

at::Tensor DimCut::whole(const at::Tensor& padded_parts) const {
  if (cut_.groups == 1) return padded_parts.narrow(0, 0, size_);
  Pieces pieces;
  for (int rank = 0; rank < ranks_; ++rank) {
    std::int64_t place = rank * largest();
    for (const Extent& run : runs(rank)) {
      pieces.emplace_back(run.offset, padded_parts.narrow(0, place, run.length));
      place += run.length;
    }
  }
  return pieces.empty() ? padded_parts.narrow(0, 0, 0) : joined(std::move(pieces), 0);
}

void DimCut::copy_part(const at::Tensor& part, int rank, const at::Tensor& whole) const {
  std::int64_t place = 0;
  for (const Extent& run : runs(rank)) {
    whole.narrow(0, run.offset, run.length).copy_(part.narrow(0, place, run.length));
    place += run.length;
  }
}

at::Tensor pad_dim(const at::Tensor& tensor, std::int64_t dim, std::int64_t length) {
  const std::int64_t missing = length - tensor.size(dim);
  if (missing == 0) return tensor;
  std::vector<std::int64_t> padding(static_cast<std::size_t>(2 * (tensor.dim() - dim)), 0);
  padding.back() = missing;
  return at::constant_pad_nd(tensor, padding);
}

at::Tensor joined(Pieces pieces, std::int64_t dim) {
  std::stable_sort(pieces.begin(), pieces.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<at::Tensor> tensors;
  for (const auto& [place, tensor] : pieces) tensors.push_back(tensor);
  return at::cat(tensors, dim);
}

Cut canonical_cut(Cut cut, std::int64_t size, int ranks) noexcept {
  if (cut.is_plain() || size == 0 || size % cut.groups != 0) return cut;
  const std::int64_t group = size / cut.groups;
  const std::int64_t first = piece_extent(group, cut.unit, ranks, 0).length;
  if (first == chunk_extent(group, ranks, 0).length) return {cut.groups, 1};
  return {cut.groups, static_cast<std::int32_t>(std::min<std::int64_t>(first, std::numeric_limits<std::int32_t>::max()))};
}

}  // namespace tessera::tensor
