// SPDX-License-Identifier: Apache-2.0
// Words for placements.
#include "tessera/mesh/placement.h"

#include <bit>
#include <charconv>
#include <utility>
#include <vector>

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

/// Stages as numbers, ascending.
std::vector<int> stages_in(StageSet stages) {
  std::vector<int> numbers;
  for (; stages != 0; stages &= stages - 1) numbers.push_back(std::countr_zero(stages));
  return numbers;
}

/// The number that `text` is, -1 if it is none from 0 to `limit` - 1.
int small_number(std::string_view text, int limit) {
  int number = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const bool whole = error == std::errc{} && end == text.data() + text.size();
  return whole && number >= 0 && number < limit ? number : -1;
}

/// What stands between the brackets of `word(...)`, nothing if `text` is not of that form.
std::string_view bracketed(std::string_view text, std::string_view word) {
  const bool fits =
      text.starts_with(word) && text.size() > word.size() + 1 && text[word.size()] == '(' && text.back() == ')';
  return fits ? text.substr(word.size() + 1, text.size() - word.size() - 2) : std::string_view();
}

/// "0,3" or "0-3" -> the set; empty if it is neither.
StageSet parse_stages(std::string_view text) {
  StageSet stages = 0;
  while (!text.empty()) {
    const std::size_t comma = text.find(',');
    const std::string_view part = text.substr(0, comma);
    const std::size_t dash = part.find('-');
    const int first = small_number(part.substr(0, dash), kMaxStages);
    const int last = dash == std::string_view::npos ? first : small_number(part.substr(dash + 1), kMaxStages);
    if (first < 0 || last < first) return 0;
    for (int stage = first; stage <= last; ++stage) stages |= Stage(stage).stages;
    text = comma == std::string_view::npos ? std::string_view() : text.substr(comma + 1);
  }
  return stages;
}

}  // namespace

std::string to_string(const Placement& placement) {
  switch (placement.kind) {
    case PlacementKind::kReplicate:
      return "replicate";
    case PlacementKind::kShard:
      return fmt::format("shard({})", placement.dim);
    case PlacementKind::kStage:
      return fmt::format("stage({})", fmt::join(stages_in(placement.stages), ","));
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
  constexpr int kMaxDims = 64;
  const int dim = small_number(bracketed(text, "shard"), kMaxDims);
  if (dim >= 0) return Shard(dim);
  if (const StageSet stages = parse_stages(bracketed(text, "stage")); stages != 0) return Stages(stages);
  throw ConfigError(fmt::format(
      "placement \"{}\" is not known; allowed: replicate, shard(DIM) with DIM >= 0, colwise, rowwise, partial(sum), "
      "and on pp stage(K) with K from 0 to 63",
      text));
}

}  // namespace tessera
