// SPDX-License-Identifier: Apache-2.0
// Which output dim of a view a sharded input dim becomes.
#include "rules/view_map.h"

namespace tessera::rules {
namespace {

struct Range {
  std::size_t begin = 0;
  std::size_t end = 0;
};

struct Group {
  Range input;
  Range output;
};

/// The smallest groups of consecutive dims with equal products; dims of size 1 stand alone on their side.
std::vector<Group> group_dims(at::IntArrayRef input, at::IntArrayRef output) {
  std::vector<Group> groups;
  std::size_t i = 0;
  std::size_t o = 0;
  while (i < input.size() || o < output.size()) {
    Group group{{i, i}, {o, o}};
    std::int64_t in_product = 1;
    std::int64_t out_product = 1;
    if (i < input.size()) in_product = input[i++];
    if (in_product == 1 && i > group.input.begin) {
      group.input.end = i;
      groups.push_back(group);
      continue;
    }
    if (o < output.size()) out_product = output[o++];
    while (in_product != out_product) {
      if (in_product < out_product && i < input.size()) {
        in_product *= input[i++];
      } else if (o < output.size()) {
        out_product *= output[o++];
      } else {
        break;
      }
    }
    group.input.end = i;
    group.output.end = o;
    groups.push_back(group);
  }
  return groups;
}

std::int64_t first_real_dim(at::IntArrayRef sizes, Range range) {
  for (std::size_t dim = range.begin; dim < range.end; ++dim) {
    if (sizes[dim] != 1) return static_cast<std::int64_t>(dim);
  }
  return -1;
}

std::int64_t count_real_dims(at::IntArrayRef sizes, Range range) {
  std::int64_t count = 0;
  for (std::size_t dim = range.begin; dim < range.end; ++dim) count += sizes[dim] != 1 ? 1 : 0;
  return count;
}

}  // namespace

tensor::Sizes infer_view_sizes(at::IntArrayRef asked, std::int64_t numel) {
  tensor::Sizes sizes(asked.begin(), asked.end());
  std::int64_t known = 1;
  for (const std::int64_t size : sizes) known *= size == -1 ? 1 : size;
  for (std::int64_t& size : sizes) {
    if (size == -1) size = known == 0 ? 0 : numel / known;
  }
  return sizes;
}

std::int64_t map_view_dim(at::IntArrayRef input, at::IntArrayRef output, std::int64_t dim, std::int64_t shards) {
  if (c10::multiply_integers(input) == 0) return -1;
  for (const Group& group : group_dims(input, output)) {
    const auto position = static_cast<std::size_t>(dim);
    if (position < group.input.begin || position >= group.input.end) continue;
    if (first_real_dim(input, group.input) != dim) return -1;
    const std::int64_t out = first_real_dim(output, group.output);
    if (out < 0) return -1;
    if (count_real_dims(input, group.input) == 1 && count_real_dims(output, group.output) == 1) return out;
    const bool even = input[position] % shards == 0 && output[static_cast<std::size_t>(out)] % shards == 0;
    return even ? out : -1;
  }
  return -1;
}

}  // namespace tessera::rules
