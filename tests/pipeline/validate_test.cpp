// SPDX-License-Identifier: Apache-2.0
// Every generator passes the validator, and what is broken does not.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "pipeline/refusal.h"
#include "tessera/pipeline/schedule.h"

namespace tessera::pipeline {
namespace {

using test::message_of;
using ::testing::HasSubstr;

std::string refusal(const Schedule& schedule, const ValidateOptions& options = {}) {
  return message_of([&] { validate(schedule, options); });
}

Schedule small() { return make_schedule("1f1b", {.ranks = 2, .microbatches = 2}); }

/// Calls `call(schedule)` for every schedule over ranks, chunks and micro-batches that it allows.
template <class Call>
void for_all_schedules(const Call& call) {
  for (const ScheduleInfo& info : schedules()) {
    for (int ranks = 1; ranks <= 8; ++ranks) {
      for (int chunks = info.min_chunks; chunks <= std::min(info.max_chunks, 4); ++chunks) {
        const int fewest = std::max(1, info.min_microbatches_per_rank * ranks);
        for (int microbatches = fewest; microbatches <= fewest + 3 * ranks; ++microbatches) {
          call(make_schedule(info.name, {.ranks = ranks, .chunks = chunks, .microbatches = microbatches}));
        }
      }
    }
  }
}

TEST(Validate, PassesEveryGenerator) {
  for_all_schedules([](const Schedule& schedule) {
    EXPECT_NO_THROW(validate(schedule)) << schedule.name << " " << schedule.num_ranks << " ranks, "
                                        << schedule.num_chunks << " chunks, " << schedule.num_microbatches
                                        << " micro-batches";
  });
}

TEST(Validate, RefusesEveryDroppedAction) {
  for (const ScheduleInfo& info : schedules()) {
    const Schedule whole = make_schedule(info.name, {.ranks = 3, .microbatches = 6});
    for (std::size_t rank = 0; rank < 3; ++rank) {
      for (std::size_t i = 0; i < whole.actions[rank].size(); ++i) {
        Schedule broken = whole;
        broken.actions[rank].erase(broken.actions[rank].begin() + static_cast<std::ptrdiff_t>(i));
        EXPECT_THROW(validate(broken), ConfigError) << info.name << " without " << to_string(whole.actions[rank][i]);
      }
    }
  }
}

TEST(Validate, RefusesEveryDuplicate) {
  for (const ScheduleInfo& info : schedules()) {
    const Schedule whole = make_schedule(info.name, {.ranks = 3, .microbatches = 6});
    for (std::size_t rank = 0; rank < 3; ++rank) {
      for (const Action& action : whole.actions[rank]) {
        Schedule broken = whole;
        broken.actions[rank].push_back(action);
        EXPECT_THAT(refusal(broken), HasSubstr(to_string(action) + " is there twice"));
      }
    }
  }
}

TEST(Validate, RefusesEveryPairThatIsSwappedAgainstItsDependency) {
  for (const ScheduleInfo& info : schedules()) {
    const Schedule whole = make_schedule(info.name, {.ranks = 3, .microbatches = 6});
    for (std::size_t rank = 0; rank < 3; ++rank) {
      const std::vector<Action>& row = whole.actions[rank];
      for (std::size_t i = 0; i < row.size(); ++i) {
        for (std::size_t j = i + 1; j < row.size(); ++j) {
          if (row[i].stage != row[j].stage || row[i].microbatch != row[j].microbatch) continue;
          Schedule broken = whole;
          std::swap(broken.actions[rank][i], broken.actions[rank][j]);
          EXPECT_THROW(validate(broken), ConfigError)
              << info.name << ": " << to_string(row[i]) << " and " << to_string(row[j]);
        }
      }
    }
  }
}

TEST(Validate, RefusesEveryActionOnAnotherRank) {
  for (const ScheduleInfo& info : schedules()) {
    const Schedule whole = make_schedule(info.name, {.ranks = 3, .microbatches = 6});
    for (std::size_t rank = 0; rank < 3; ++rank) {
      for (std::size_t i = 0; i < whole.actions[rank].size(); ++i) {
        Schedule broken = whole;
        const Action action = broken.actions[rank][i];
        broken.actions[rank].erase(broken.actions[rank].begin() + static_cast<std::ptrdiff_t>(i));
        broken.actions[(rank + 1) % 3].push_back(action);
        EXPECT_THROW(validate(broken), ConfigError) << info.name << ": " << to_string(action);
      }
    }
  }
}

/// Does the graph of row order and dependencies have no cycle? By removing what nothing precedes, again and again.
bool has_an_order(const Schedule& schedule) {
  std::vector<Action> all;
  std::vector<std::pair<std::size_t, std::size_t>> edges;
  for (const std::vector<Action>& row : schedule.actions) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      all.push_back(row[i]);
      if (i > 0) edges.emplace_back(all.size() - 2, all.size() - 1);
    }
  }
  const auto starts_backward = [](const Action& action) {
    return action.kind == ActionKind::kBackward || action.kind == ActionKind::kBackwardInput;
  };
  for (std::size_t i = 0; i < all.size(); ++i) {
    for (std::size_t j = 0; j < all.size(); ++j) {
      if (all[i].microbatch != all[j].microbatch) continue;
      const bool forwards = all[i].kind == ActionKind::kForward && all[j].kind == ActionKind::kForward;
      const bool backwards = starts_backward(all[i]) && starts_backward(all[j]);
      const bool turns = all[i].kind == ActionKind::kForward && starts_backward(all[j]);
      const bool ends = starts_backward(all[i]) && all[j].kind == ActionKind::kBackwardWeight;
      if ((forwards && all[i].stage + 1 == all[j].stage) || (backwards && all[i].stage == all[j].stage + 1) ||
          ((turns || ends) && all[i].stage == all[j].stage)) {
        edges.emplace_back(i, j);
      }
    }
  }
  std::vector<int> before(all.size(), 0);
  for (const auto& [from, to] : edges) ++before[to];
  std::vector<std::size_t> ready;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (before[i] == 0) ready.push_back(i);
  }
  std::size_t removed = 0;
  for (; !ready.empty(); ++removed) {
    const std::size_t at = ready.back();
    ready.pop_back();
    for (const auto& [from, to] : edges) {
      if (from == at && --before[to] == 0) ready.push_back(to);
    }
  }
  return removed == all.size();
}

TEST(Validate, RefusesASwapOfNeighboursExactlyWhereTheGraphHasACycle) {
  int passed = 0;
  int refused = 0;
  for (const ScheduleInfo& info : schedules()) {
    const Schedule whole = make_schedule(info.name, {.ranks = 2, .microbatches = 4});
    for (std::size_t rank = 0; rank < 2; ++rank) {
      for (std::size_t distance = 1; distance <= 3; ++distance) {
        for (std::size_t i = 0; i + distance < whole.actions[rank].size(); ++i) {
          Schedule swapped = whole;
          std::swap(swapped.actions[rank][i], swapped.actions[rank][i + distance]);
          const bool right = has_an_order(swapped);
          EXPECT_EQ(refusal(swapped) == "nothing was thrown", right) << format_schedule(swapped);
          ++(right ? passed : refused);
        }
      }
    }
  }
  EXPECT_GT(passed, 50);
  EXPECT_GT(refused, 50);
}

TEST(Validate, ShowsTheRowWithAnArrowUnderTheOffendingAction) {
  Schedule broken = small();
  std::swap(broken.actions[0][0], broken.actions[0][2]);
  EXPECT_EQ(refusal(broken),
            "schedule \"1f1b\" is not valid: rank 0: 0B0 comes before 0F0, whose result it needs\n"
            "  rank 0: 0B0 0F1 0F0 0B1\n"
            "          ^^^");
}

TEST(Validate, ShowsOnlyTheNeighboursInALongRow) {
  Schedule broken = make_schedule("gpipe", {.ranks = 1, .microbatches = 50});
  broken.actions[0][25] = broken.actions[0][24];
  EXPECT_THAT(refusal(broken), HasSubstr("  rank 0: ... 0F17 0F18 0F19 0F20 0F21 0F22 0F23 0F24 0F24 0F26 0F27"));
}

TEST(Validate, NamesTheRingOfRanksInADeadlock) {
  Schedule broken = small();
  std::swap(broken.actions[0][1], broken.actions[0][2]);  // 0B0 before 0F1
  std::swap(broken.actions[1][1], broken.actions[1][2]);  // 1F1 before 1B0
  EXPECT_EQ(refusal(broken),
            "schedule \"1f1b\" is not valid: deadlock: rank 0 waits in 0B0 for 1B0, rank 1 waits in 1F1 for 0F1, which "
            "comes later\n"
            "  rank 0: 0F0 0B0 0F1 0B1\n"
            "              ^^^\n"
            "  rank 1: 1F0 1F1 1B0 1B1\n"
            "              ^^^");
}

TEST(Validate, RefusesWhatIsMissing) {
  Schedule broken = small();
  broken.actions[1].pop_back();
  EXPECT_THAT(refusal(broken), HasSubstr("micro-batch 1 of stage 1 has no backward; add a B, or an I and a W"));
  broken = small();
  broken.actions[1].erase(broken.actions[1].begin() + 2);
  EXPECT_THAT(refusal(broken), HasSubstr("1B1 needs 1F1, which is missing"));
  broken.actions[1].pop_back();
  EXPECT_THAT(refusal(broken), HasSubstr("micro-batch 1 of stage 1 never runs"));
}

TEST(Validate, RefusesABackwardThatIsBothWholeAndSplit) {
  Schedule broken = small();
  broken.actions[0].push_back({ActionKind::kBackwardInput, 0, 0});
  EXPECT_THAT(refusal(broken), HasSubstr("0I0 comes beside a B of the same micro-batch"));
  broken = small();
  broken.actions[0] = {{ActionKind::kForward, 0, 0}, {ActionKind::kBackwardInput, 0, 0}, {ActionKind::kBackward, 0, 0}};
  EXPECT_THAT(refusal(broken), HasSubstr("0B0 comes beside a split backward of the same micro-batch"));
}

TEST(Validate, RefusesWeightGradientsThatAreMissingOrTooEarly) {
  Schedule schedule{
      .name = "own",
      .num_ranks = 1,
      .num_chunks = 1,
      .num_microbatches = 1,
      .rank_of_stage = {0},
      .splits_backward = true,
      .actions = {
          {{ActionKind::kForward, 0, 0}, {ActionKind::kBackwardInput, 0, 0}, {ActionKind::kBackwardWeight, 0, 0}}}};
  EXPECT_NO_THROW(validate(schedule));
  std::swap(schedule.actions[0][1], schedule.actions[0][2]);
  EXPECT_THAT(refusal(schedule), HasSubstr("0W0 comes before 0I0, whose result it needs"));
  schedule.actions[0].erase(schedule.actions[0].begin() + 1);
  EXPECT_THAT(refusal(schedule), HasSubstr("micro-batch 0 of stage 0 has I but no W"));
}

TEST(Validate, RefusesStagesAndMicrobatchesThatDoNotExist) {
  for (const Action& action : {Action{ActionKind::kForward, 2, 0}, Action{ActionKind::kForward, -1, 0},
                               Action{ActionKind::kForward, 0, 2}, Action{ActionKind::kForward, 0, -1}}) {
    Schedule broken = small();
    broken.actions[0].push_back(action);
    EXPECT_THAT(refusal(broken), HasSubstr("does not exist; allowed: 0 to 1"));
  }
}

TEST(Validate, RefusesAStageMapThatIsNotOneToOne) {
  Schedule broken = small();
  broken.rank_of_stage = {0, 0};
  EXPECT_THAT(refusal(broken), HasSubstr("rank 0 has 2 stages; every rank must have 1"));
  broken.rank_of_stage = {0, 2};
  EXPECT_THAT(refusal(broken), HasSubstr("rank_of_stage names a rank 2"));
  broken.rank_of_stage = {0};
  EXPECT_THAT(refusal(broken), HasSubstr("rank_of_stage has 1 entries for 2 stages"));
  broken = small();
  broken.actions.pop_back();
  EXPECT_THAT(refusal(broken), HasSubstr("1 rows for 2 ranks"));
  broken = small();
  broken.num_microbatches = 0;
  EXPECT_THAT(refusal(broken), HasSubstr("allowed: 1 or more of each"));
}

TEST(Validate, RefusesAFlagThatContradictsTheActions) {
  Schedule broken = small();
  broken.splits_backward = true;
  EXPECT_THAT(refusal(broken), HasSubstr("splits_backward is true, but there are no I and W actions"));
}

TEST(Validate, RefusesMoreActivationsThanAllowed) {
  const Schedule schedule = make_schedule("1f1b", {.ranks = 4, .microbatches = 8});
  EXPECT_NO_THROW(validate(schedule, {.max_activations = 4}));
  EXPECT_THAT(refusal(schedule, {.max_activations = 3}),
              HasSubstr("rank 0: 0F3 is forward unit 4 held at once; allowed: 3"));
}

}  // namespace
}  // namespace tessera::pipeline
