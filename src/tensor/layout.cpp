// SPDX-License-Identifier: Apache-2.0
// Arithmetic between global and local sizes and strides.
#include "tensor/layout.h"

#include <algorithm>
#include <numeric>

namespace tessera::tensor {

Extent local_extent(std::int64_t size, int dim, const Placements& placements, const Mesh& mesh) {
  Extent extent{0, size};
  for (int axis = placements.size() - 1; axis >= 0; --axis) {
    if (!placements[axis].is_shard(dim)) continue;
    const Extent part = chunk_extent(extent.length, mesh.axis_size(axis), mesh.coordinate(axis));
    extent = {extent.offset + part.offset, part.length};
  }
  return extent;
}

Sizes local_sizes(at::IntArrayRef global_sizes, const Placements& placements, const Mesh& mesh) {
  Sizes sizes(global_sizes.begin(), global_sizes.end());
  for (const Placement& placement : placements) {
    if (!placement.is_shard()) continue;
    const auto dim = static_cast<std::size_t>(placement.dim);
    sizes[dim] = local_extent(global_sizes[dim], placement.dim, placements, mesh).length;
  }
  return sizes;
}

Sizes contiguous_strides(at::IntArrayRef sizes) {
  Sizes strides(sizes.size(), 1);
  for (std::size_t dim = sizes.size(); dim-- > 1;) strides[dim - 1] = strides[dim] * std::max<std::int64_t>(sizes[dim], 1);
  return strides;
}

std::int64_t num_shards(int dim, const Placements& placements, const Mesh& mesh) {
  std::int64_t shards = 1;
  for (int axis = 0; axis < placements.size(); ++axis) {
    if (placements[axis].is_shard(dim)) shards *= mesh.axis_size(axis);
  }
  return shards;
}

bool strides_are_ambiguous(const Placements& placements, const Mesh& mesh, at::IntArrayRef global_sizes) {
  for (const Placement& placement : placements) {
    if (!placement.is_shard()) continue;
    const std::int64_t size = global_sizes[static_cast<std::size_t>(placement.dim)];
    const std::int64_t shards = num_shards(placement.dim, placements, mesh);
    if (shards == 1) continue;
    // The last of uneven chunks is the smallest: at least size / shards - (shards - 1).
    if (size < 2 * shards || (size % shards != 0 && size < shards * (shards + 1))) return true;
  }
  return false;
}

Sizes global_strides(const at::Tensor& local, at::IntArrayRef global_sizes) {
  const auto dims = global_sizes.size();
  if (local.sizes() == global_sizes) return {local.strides().begin(), local.strides().end()};
  c10::SmallVector<std::size_t, 6> order(dims);
  std::iota(order.begin(), order.end(), std::size_t{0});
  const auto strides = local.strides();
  const auto sizes = local.sizes();
  // Innermost first; among equal strides the dim of size 1 is the inner one, then the later one.
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    if (strides[a] != strides[b]) return strides[a] < strides[b];
    if ((sizes[a] == 1) != (sizes[b] == 1)) return sizes[a] == 1;
    return a > b;
  });
  Sizes result(dims);
  std::int64_t local_dense = 1;
  std::int64_t scale_numerator = 1;
  std::int64_t scale_denominator = 1;
  for (const std::size_t dim : order) {
    // A gap between a local stride and the dense one (a slice of something larger) is kept, scaled by what the inner
    // dims grew.
    const std::int64_t stride = std::max(strides[dim], local_dense);
    result[dim] = strides[dim] == 0 ? 0 : stride / std::max<std::int64_t>(scale_denominator, 1) * scale_numerator;
    if (strides[dim] != 0) local_dense = stride * std::max<std::int64_t>(sizes[dim], 1);
    if (strides[dim] != 0 && sizes[dim] != global_sizes[dim]) {
      scale_numerator *= std::max<std::int64_t>(global_sizes[dim], 1);
      scale_denominator *= std::max<std::int64_t>(sizes[dim], 1);
    }
  }
  return result;
}

}  // namespace tessera::tensor
