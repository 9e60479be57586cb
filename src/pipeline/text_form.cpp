// SPDX-License-Identifier: Apache-2.0
// Schedules as text that people edit.
#include <algorithm>
#include <charconv>
#include <map>

#include "tessera/base/error.h"
#include "tessera/pipeline/schedule.h"

namespace tessera::pipeline {
namespace {

constexpr std::string_view kSeparators = ", \t\r";
constexpr std::string_view kKindLetters = "FBIW";  // in the order of ActionKind
/// Larger numbers are slips of the keyboard; products of smaller ones fit an int64.
constexpr int kLargestNumber = 1 << 24;

/// Reads digits off the front of `text`; empty if there are none or too many.
std::optional<int> take_number(std::string_view& text) {
  int number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{} || text.front() == '-' || number > kLargestNumber) return std::nullopt;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return number;
}

std::optional<Action> parse_action(std::string_view word) {
  const std::optional<int> stage = take_number(word);
  if (!stage || word.empty()) return std::nullopt;
  const std::size_t kind = kKindLetters.find(word.front());
  word.remove_prefix(1);
  if (kind == std::string_view::npos || word.empty()) return std::nullopt;
  const std::optional<int> microbatch = take_number(word);
  if (!microbatch || !word.empty()) return std::nullopt;
  return Action{static_cast<ActionKind>(kind), *stage, *microbatch};
}

/// Why a word is no action: transfers, which other tools write, deserve an answer of their own.
std::string_view remedy_of(std::string_view word) {
  const bool moves = word.find("SEND") != std::string_view::npos || word.find("RECV") != std::string_view::npos;
  return moves ? "leave transfers out, they happen by themselves"
               : "kinds are F forward, B backward, I input gradient, W weight gradient";
}

class Parser {
 public:
  explicit Parser(std::string_view name) { schedule_.name = name; }

  void line(std::string_view text) {
    ++line_;
    text = text.substr(0, text.find('#'));
    std::vector<Action> row;
    while (true) {
      text.remove_prefix(std::min(text.find_first_not_of(kSeparators), text.size()));
      if (text.empty()) break;
      const std::string_view word = text.substr(0, text.find_first_of(kSeparators));
      text.remove_prefix(word.size());
      row.push_back(action(word));
    }
    if (!row.empty()) schedule_.actions.push_back(std::move(row));
  }

  Schedule finish() && {
    const auto num_stages = static_cast<int>(rank_of_stage_.size());
    schedule_.num_ranks = static_cast<int>(schedule_.actions.size());
    check<ConfigError>(num_stages > 0, "schedule {}: no actions; allowed: one row per rank, for instance 0F0,0B0",
                       schedule_.name);
    int stage = 0;
    for (const auto& [number, rank] : rank_of_stage_) {
      check<ConfigError>(number == stage,
                         "schedule {}: stage {} is missing, but there is a stage {}; count stages from 0",
                         schedule_.name, stage, number);
      schedule_.rank_of_stage.push_back(rank);
      ++stage;
    }
    check<ConfigError>(num_stages % schedule_.num_ranks == 0,
                       "schedule {}: {} stages on {} ranks; every rank (row) must have the same number of stages",
                       schedule_.name, num_stages, schedule_.num_ranks);
    schedule_.num_chunks = num_stages / schedule_.num_ranks;
    return std::move(schedule_);
  }

 private:
  Action action(std::string_view word) {
    const std::optional<Action> parsed = parse_action(word);
    check<ConfigError>(parsed.has_value(),
                       "schedule {}, line {}: \"{}\" is not STAGE KIND MICROBATCH, for instance 0F1; {}",
                       schedule_.name, line_, word, remedy_of(word));
    const auto rank = static_cast<int>(schedule_.actions.size());
    const auto [its, is_new] = rank_of_stage_.try_emplace(parsed->stage, rank);
    check<ConfigError>(
        its->second == rank,
        "schedule {}, line {}: \"{}\": stage {} is already in the row of rank {}; a stage lies on one rank",
        schedule_.name, line_, word, parsed->stage, its->second);
    schedule_.num_microbatches = std::max(schedule_.num_microbatches, parsed->microbatch + 1);
    schedule_.splits_backward = schedule_.splits_backward || parsed->kind == ActionKind::kBackwardInput ||
                                parsed->kind == ActionKind::kBackwardWeight;
    return *parsed;
  }

  Schedule schedule_;
  std::map<int, int> rank_of_stage_;
  int line_ = 0;
};

}  // namespace

std::string format_schedule(const Schedule& schedule) {
  std::string text = fmt::format("# {}: ranks {}, chunks per rank {}, micro-batches {}\n", schedule.name,
                                 schedule.num_ranks, schedule.num_chunks, schedule.num_microbatches);
  for (const std::vector<Action>& row : schedule.actions) {
    for (std::size_t i = 0; i < row.size(); ++i) text += (i == 0 ? "" : ",") + to_string(row[i]);
    text += "\n";
  }
  return text;
}

Schedule parse_schedule(std::string_view text, std::string_view name) {
  Parser parser(name);
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    parser.line(text.substr(0, end));
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  }
  return std::move(parser).finish();
}

}  // namespace tessera::pipeline
