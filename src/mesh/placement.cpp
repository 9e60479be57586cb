// SPDX-License-Identifier: Apache-2.0
// Words for placements.
#include "tessera/mesh/placement.h"

#include <bit>
#include <charconv>
#include <tuple>
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

constexpr std::array<std::pair<std::string_view, Placement>, 2> kWords{{
    {"replicate", Replicate()},
    {"partial", Partial()},
}};

/// Stages as numbers, ascending.
std::vector<int> stages_in(StageSet stages) {
  std::vector<int> numbers;
  for (; stages != 0; stages &= stages - 1) numbers.push_back(std::countr_zero(stages));
  return numbers;
}

/// The words that name a dim of a weight, and may have a cut.
constexpr std::array<std::pair<std::string_view, int>, 2> kDimWords{{{"colwise", 0}, {"rowwise", 1}}};

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

/// Takes what stands before the next comma off `text`, without spaces around it.
std::string_view take_item(std::string_view& text) {
  const std::size_t comma = text.find(',');
  std::string_view item = text.substr(0, comma);
  text = comma == std::string_view::npos ? std::string_view() : text.substr(comma + 1);
  while (item.starts_with(' ')) item.remove_prefix(1);
  while (item.ends_with(' ')) item.remove_suffix(1);
  return item;
}

/// "groups=3, unit=64": each at most once, from 1 up. False if it is anything else.
bool parse_cut(std::string_view text, Cut& cut) {
  constexpr int kMaxNumber = 1 << 30;
  bool has_groups = false;
  bool has_unit = false;
  while (!text.empty()) {
    const std::string_view item = take_item(text);
    const bool is_groups = item.starts_with("groups=") && !std::exchange(has_groups, true);
    const bool is_unit = item.starts_with("unit=") && !std::exchange(has_unit, true);
    const int number = small_number(item.substr(item.find('=') + 1), kMaxNumber);
    if (is_groups == is_unit || number < 1) return false;
    (is_groups ? cut.groups : cut.unit) = number;
  }
  return true;
}

/// "shard(0, groups=3)", "colwise", "rowwise(unit=64)"; replicate if it is none of these.
Placement parse_shard(std::string_view text) {
  constexpr int kMaxDims = 64;
  Placement shard = Shard(0);
  std::string_view cut = bracketed(text, "shard");
  int dim = cut.empty() ? -1 : small_number(take_item(cut), kMaxDims);
  for (const auto& [word, named] : kDimWords) {
    if (text == word) return Shard(named);
    if (const std::string_view own = bracketed(text, word); !own.empty()) std::tie(dim, cut) = std::pair(named, own);
  }
  if (dim < 0 || !parse_cut(cut, shard.cut)) return Replicate();
  shard.dim = static_cast<std::int16_t>(dim);
  return shard;
}

std::string format_shard(const Placement& shard) {
  std::string text = fmt::format("shard({}", shard.dim);
  if (shard.cut.groups != 1) text += fmt::format(", groups={}", shard.cut.groups);
  if (shard.cut.unit != 1) text += fmt::format(", unit={}", shard.cut.unit);
  return text + ")";
}

}  // namespace

std::string to_string(const Placement& placement) {
  switch (placement.kind) {
    case PlacementKind::kReplicate:
      return "replicate";
    case PlacementKind::kShard:
      return format_shard(placement);
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
  if (const Placement shard = parse_shard(text); shard.is_shard()) return shard;
  if (const StageSet stages = parse_stages(bracketed(text, "stage")); stages != 0) return Stages(stages);
  throw ConfigError(fmt::format(
      "placement \"{}\" is not known; allowed: replicate, shard(DIM) with DIM >= 0, colwise, rowwise, these three "
      "with a cut as in shard(0, groups=3, unit=64) or colwise(unit=64), partial(sum), and on pp stage(K) with K from 0 to "
      "63",
      text));
}

}  // namespace tessera
