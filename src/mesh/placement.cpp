// SPDX-License-Identifier: Apache-2.0
// Words for placements.
#include "tessera/mesh/placement.h"

#include <charconv>
#include <utility>

#include "tessera/base/error.h"

namespace tessera {
namespace {

constexpr std::array<std::pair<PartialOp, std::string_view>, 3> kPartialNames{{
    {PartialOp::kSum, "partial(sum)"},
    {PartialOp::kMax, "partial(max)"},
    {PartialOp::kMin, "partial(min)"},
}};

constexpr std::array<std::pair<std::string_view, Placement>, 4> kWords{{
    {"replicate", Replicate()},
    {"partial", Partial()},
    {"colwise", Shard(0)},
    {"rowwise", Shard(1)},
}};

}  // namespace

std::string to_string(const Placement& placement) {
  switch (placement.kind) {
    case PlacementKind::kReplicate:
      return "replicate";
    case PlacementKind::kShard:
      return fmt::format("shard({})", placement.dim);
    case PlacementKind::kPartial:
      break;
  }
  for (const auto& [op, name] : kPartialNames) {
    if (op == placement.op) return std::string(name);
  }
  return "partial";
}

Placement parse_placement(std::string_view text) {
  for (const auto& [word, placement] : kWords) {
    if (text == word) return placement;
  }
  for (const auto& [op, name] : kPartialNames) {
    if (text == name) return Partial(op);
  }
  if (text.starts_with("shard(") && text.ends_with(")")) {
    const std::string_view digits = text.substr(6, text.size() - 7);
    int dim = -1;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), dim);
    if (error == std::errc{} && end == digits.data() + digits.size() && dim >= 0 && dim < 64) return Shard(dim);
  }
  throw ConfigError(fmt::format(
      "placement \"{}\" is not known; allowed: replicate, shard(DIM) with DIM >= 0, colwise, rowwise, partial(sum)",
      text));
}

}  // namespace tessera
