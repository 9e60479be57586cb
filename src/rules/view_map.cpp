// SPDX-License-Identifier: Apache-2.0
// Which output dim of a view a sharded input dim becomes.
#include "rules/view_map.h"

#include <limits>

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

std::int64_t product(at::IntArrayRef sizes, std::size_t begin, std::size_t end) {
  return c10::multiply_integers(sizes.slice(begin, end - begin));
}

const Group* find_group(const std::vector<Group>& groups, std::int64_t dim) {
  const auto position = static_cast<std::size_t>(dim);
  for (const Group& group : groups) {
    if (group.input.begin <= position && position < group.input.end) return &group;
  }
  return nullptr;
}

/// A cut of the flattened group: `groups` parts of equal size, and the first rank's piece of each.
struct FlatCut {
  std::int64_t groups = 0;
  std::int64_t group_size = 0;
  std::int64_t piece = 0;
};

/// The same cut as one of a dim of `size`, with `outer` in front of it and `inner` behind it; nothing if it is none.
std::optional<Cut> cut_of_dim(const FlatCut& flat, std::int64_t size, std::int64_t outer, std::int64_t inner, int ranks) {
  constexpr std::int64_t kLargest = std::numeric_limits<std::int32_t>::max();
  if (flat.groups % outer != 0 || size % (flat.groups / outer) != 0) return std::nullopt;
  const bool has_all = flat.piece >= flat.group_size;
  if (!has_all && flat.piece % inner != 0) return std::nullopt;
  const std::int64_t groups = flat.groups / outer;
  const std::int64_t unit = has_all ? size / groups : flat.piece / inner;
  if (groups > kLargest || unit > kLargest) return std::nullopt;
  return tensor::canonical_cut({static_cast<std::int32_t>(groups), static_cast<std::int32_t>(unit)}, size, ranks);
}

/// Rows for a product: it wants them whole, as sequence parallelism has it, and must not choose between them and its weight.
bool interleaves_rows(at::IntArrayRef output, const Placement& shard, std::int64_t outer) {
  return output.size() <= 2 && shard.dim == 0 && shard.cut.groups > 1 && outer > 1;
}

}  // namespace

std::optional<Placement> map_view_shard(at::IntArrayRef input, at::IntArrayRef output, const Placement& shard, int ranks) {
  if (c10::multiply_integers(input) == 0) return std::nullopt;
  const auto position = static_cast<std::size_t>(shard.dim);
  const auto groups = group_dims(input, output);
  const Group* group = find_group(groups, shard.dim);
  if (group == nullptr || input[position] % shard.cut.groups != 0) return std::nullopt;
  const std::int64_t outer = product(input, group->input.begin, position);
  const std::int64_t inner = product(input, position + 1, group->input.end);
  const std::int64_t part = input[position] / shard.cut.groups;
  const std::int64_t piece = piece_extent(part, shard.cut.unit, ranks, 0).length;
  const FlatCut flat{shard.cut.groups * outer, part * inner, piece * inner};
  for (std::size_t out = group->output.end; out-- > group->output.begin;) {
    if (output[out] == 1) continue;
    const auto cut = cut_of_dim(flat, output[out], product(output, group->output.begin, out),
                                product(output, out + 1, group->output.end), ranks);
    if (!cut) continue;
    const Placement result = Shard(static_cast<std::int64_t>(out), *cut);
    return interleaves_rows(output, result, outer) ? std::nullopt : std::optional(result);
  }
  return std::nullopt;
}

bool same_view_group(at::IntArrayRef input, at::IntArrayRef output, std::int64_t a, std::int64_t b) {
  const auto groups = group_dims(input, output);
  return find_group(groups, a) == find_group(groups, b);
}

tensor::Sizes infer_view_sizes(at::IntArrayRef asked, std::int64_t numel) {
  tensor::Sizes sizes(asked.begin(), asked.end());
  std::int64_t known = 1;
  for (const std::int64_t size : sizes) known *= size == -1 ? 1 : size;
  for (std::int64_t& size : sizes) {
    if (size == -1) size = known == 0 ? 0 : numel / known;
  }
  return sizes;
}

std::int64_t passed_through(at::IntArrayRef input, at::IntArrayRef output, std::int64_t dim) {
  if (c10::multiply_integers(input) == 0 || input[static_cast<std::size_t>(dim)] == 1) return -1;
  const auto groups = group_dims(input, output);
  const Group* group = find_group(groups, dim);
  const bool alone = count_real_dims(input, group->input) == 1 && count_real_dims(output, group->output) == 1;
  return alone ? first_real_dim(output, group->output) : -1;
}

}  // namespace tessera::rules
