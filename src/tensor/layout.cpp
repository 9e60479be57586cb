// SPDX-License-Identifier: Apache-2.0
// Arithmetic between global and local sizes and strides.
#include "tensor/layout.h"

#include <ATen/ExpandUtils.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "tessera/base/error.h"

namespace tessera::tensor {

Extents local_runs(std::int64_t size, int dim, const Placements& placements, const Mesh& mesh) {
  Extents runs{{0, size}};
  std::int64_t length = size;
  for (int axis = placements.size() - 1; axis >= 0; --axis) {
    if (!placements[axis].is_shard(dim)) continue;
    const DimCut cut(length, placements[axis].cut, mesh.axis_size(axis));
    Extents mine;
    for (const Extent& place : cut.runs(mesh.coordinate(axis))) append_within(mine, runs, place);
    runs = std::move(mine);
    length = cut.length(mesh.coordinate(axis));
  }
  return runs;
}

std::int64_t local_length(std::int64_t size, int dim, const Placements& placements, const Mesh& mesh) {
  for (int axis = placements.size() - 1; axis >= 0; --axis) {
    if (!placements[axis].is_shard(dim)) continue;
    size = DimCut(size, placements[axis].cut, mesh.axis_size(axis)).length(mesh.coordinate(axis));
  }
  return size;
}

Extent local_extent(std::int64_t size, int dim, const Placements& placements, const Mesh& mesh) {
  const Extents runs = local_runs(size, dim, placements, mesh);
  check<Error>(runs.size() <= 1, "dim {} of {}: rank {} holds {} parts of it, where one was asked for; the rule is wrong", dim,
               size, mesh.rank(), runs.size());
  return runs.empty() ? Extent{size, 0} : runs[0];
}

void check_cuts(std::string_view operation, at::IntArrayRef sizes, const Placements& placements, const Mesh& mesh) {
  for (int axis = 0; axis < placements.size(); ++axis) {
    const Placement& placement = placements[axis];
    if (!placement.is_shard() || placement.cut.is_plain()) continue;
    const std::int64_t size = sizes[static_cast<std::size_t>(placement.dim)];
    check<ShapeError>(placement.cut.groups >= 1 && placement.cut.unit >= 1 && size % placement.cut.groups == 0,
                      "{}: {} of a dim of {}; allowed: units from 1 up, and groups that divide the dim", operation,
                      to_string(placement), size);
    for (int later = axis + 1; later < placements.size(); ++later) {
      check<ShapeError>(placement.cut.groups == 1 || !placements[later].is_shard(placement.dim) || mesh.axis_size(later) == 1,
                        "{}: {} on axis {}, but axis {} cuts that dim first; give the groups to that one", operation,
                        to_string(placement), mesh.axes()[static_cast<std::size_t>(axis)].name,
                        mesh.axes()[static_cast<std::size_t>(later)].name);
    }
  }
}

Placements canonical(Placements placements, at::IntArrayRef sizes, const Mesh& mesh) {
  unsigned long long seen = 0;
  for (int axis = placements.size() - 1; axis >= 0; --axis) {
    Placement& placement = placements[axis];
    const bool has_dim = placement.is_shard() && static_cast<std::size_t>(placement.dim) < sizes.size();
    if (!has_dim || mesh.axis_size(axis) == 1) continue;
    const auto bit = 1ULL << static_cast<unsigned>(placement.dim);
    const bool is_first = (std::exchange(seen, seen | bit) & bit) == 0;
    const std::int64_t size = sizes[static_cast<std::size_t>(placement.dim)];
    if (is_first) placement.cut = canonical_cut(placement.cut, size, mesh.axis_size(axis));
  }
  return placements;
}

Sizes local_sizes(at::IntArrayRef global_sizes, const Placements& placements, const Mesh& mesh) {
  Sizes sizes(global_sizes.begin(), global_sizes.end());
  for (const Placement& placement : placements) {
    if (!placement.is_shard()) continue;
    const auto dim = static_cast<std::size_t>(placement.dim);
    sizes[dim] = local_length(global_sizes[dim], placement.dim, placements, mesh);
  }
  return sizes;
}

Sizes contiguous_strides(at::IntArrayRef sizes) {
  Sizes strides(sizes.size(), 1);
  for (std::size_t dim = sizes.size(); dim-- > 1;) strides[dim - 1] = strides[dim] * std::max<std::int64_t>(sizes[dim], 1);
  return strides;
}

DimOrder memory_order(at::IntArrayRef sizes, at::IntArrayRef strides) {
  DimOrder order(sizes.size());
  std::iota(order.begin(), order.end(), std::int64_t{0});
  const bool descends = std::is_sorted(strides.rbegin(), strides.rend()) && !strides.empty() && strides.back() > 0;
  if (descends && std::adjacent_find(strides.begin(), strides.end()) == strides.end()) return order;
  const std::vector<std::int64_t> dense = at::infer_dense_strides(sizes, strides);
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    const auto i = static_cast<std::size_t>(a);
    const auto k = static_cast<std::size_t>(b);
    // Equal strides: one of the two has one element, and is the inner one.
    return dense[i] != dense[k] ? dense[i] > dense[k] : sizes[i] > 1 && sizes[k] <= 1;
  });
  return order;
}

DimOrder inverse(const DimOrder& order) {
  DimOrder result(order.size());
  for (std::size_t i = 0; i < order.size(); ++i)
    result[static_cast<std::size_t>(order[i])] = static_cast<std::int64_t>(i);
  return result;
}

Sizes dense_strides(at::IntArrayRef sizes, const DimOrder& order) {
  Sizes strides(sizes.size());
  std::int64_t stride = 1;
  for (auto dim = order.rbegin(); dim != order.rend(); ++dim) {
    strides[static_cast<std::size_t>(*dim)] = stride;
    stride *= std::max<std::int64_t>(sizes[static_cast<std::size_t>(*dim)], 1);
  }
  return strides;
}

at::Tensor in_order(const at::Tensor& tensor, const DimOrder& order) {
  const Sizes strides = dense_strides(tensor.sizes(), order);
  if (tensor.strides() == at::IntArrayRef(strides)) return tensor;
  const at::Tensor dense = tensor.permute(order).contiguous();
  return dense.as_strided(tensor.sizes(), strides, dense.storage_offset());
}

std::int64_t num_shards(int dim, const Placements& placements, const Mesh& mesh) {
  std::int64_t shards = 1;
  for (int axis = 0; axis < placements.size(); ++axis) {
    if (placements[axis].is_shard(dim)) shards *= mesh.axis_size(axis);
  }
  return shards;
}

namespace {

/// True if the last rank along every axis, which has least, holds fewer than two elements of `dim`.
bool may_hold_one(std::int64_t size, int dim, const Placements& placements, const Mesh& mesh) {
  for (int axis = placements.size() - 1; axis >= 0; --axis) {
    if (!placements[axis].is_shard(dim)) continue;
    size = DimCut(size, placements[axis].cut, mesh.axis_size(axis)).length(mesh.axis_size(axis) - 1);
  }
  return size < 2;
}

bool is_plain(int dim, const Placements& placements) {
  return std::all_of(placements.begin(), placements.end(),
                     [&](const Placement& placement) { return !placement.is_shard(dim) || placement.cut.is_plain(); });
}

}  // namespace

bool strides_are_ambiguous(const Placements& placements, const Mesh& mesh, at::IntArrayRef global_sizes) {
  for (const Placement& placement : placements) {
    if (!placement.is_shard()) continue;
    const std::int64_t size = global_sizes[static_cast<std::size_t>(placement.dim)];
    const std::int64_t shards = num_shards(placement.dim, placements, mesh);
    if (shards == 1) continue;
    if (!is_plain(placement.dim, placements)) {
      if (may_hold_one(size, placement.dim, placements, mesh)) return true;
      continue;
    }
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
