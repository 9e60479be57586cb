// SPDX-License-Identifier: Apache-2.0
// What each generator makes: order, memory, and what it asks of its options.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "pipeline/refusal.h"
#include "tessera/pipeline/schedule.h"

namespace tessera::pipeline {
namespace {

using test::message_of;
using ::testing::HasSubstr;

std::string row_text(const Schedule& schedule, std::size_t rank) {
  std::string text;
  for (const Action& action : schedule.actions[rank]) text += (text.empty() ? "" : " ") + to_string(action);
  return text;
}

std::vector<int> peaks(const std::string& name, int ranks, int microbatches, int chunks = 0) {
  return peak_activations(make_schedule(name, {.ranks = ranks, .chunks = chunks, .microbatches = microbatches}));
}

/// Calls `call(ranks, microbatches)`.
template <class Call>
void over_sizes(const Call& call) {
  for (int ranks = 1; ranks <= 8; ++ranks) {
    for (int microbatches = 1; microbatches <= 4 * ranks; ++microbatches) call(ranks, microbatches);
  }
}

TEST(Gpipe, RunsAllForwardsThenAllBackwards) {
  const Schedule schedule = make_schedule("gpipe", {.ranks = 2, .microbatches = 3});
  EXPECT_EQ(row_text(schedule, 1), "1F0 1F1 1F2 1B0 1B1 1B2");
}
TEST(Gpipe, HoldsEveryMicrobatch) {
  over_sizes([](int ranks, int microbatches) {
    EXPECT_EQ(peaks("gpipe", ranks, microbatches), std::vector<int>(static_cast<std::size_t>(ranks), microbatches));
  });
}

TEST(OneForwardOneBackward, AlternatesAfterTheWarmUp) {
  const Schedule schedule = make_schedule("1f1b", {.ranks = 3, .microbatches = 4});
  EXPECT_EQ(row_text(schedule, 0), "0F0 0F1 0F2 0B0 0F3 0B1 0B2 0B3");
  EXPECT_EQ(row_text(schedule, 2), "2F0 2B0 2F1 2B1 2F2 2B2 2F3 2B3");
}
TEST(OneForwardOneBackward, HoldsOneMicrobatchPerRankThatFollows) {
  over_sizes([](int ranks, int microbatches) {
    const std::vector<int> held = peaks("1f1b", ranks, microbatches);
    for (int rank = 0; rank < ranks; ++rank) {
      EXPECT_EQ(held[static_cast<std::size_t>(rank)], std::min(microbatches, ranks - rank));
    }
  });
}

TEST(Interleaved, WithOneChunkIsOneForwardOneBackward) {
  over_sizes([](int ranks, int microbatches) {
    const ScheduleOptions options{.ranks = ranks, .chunks = 1, .microbatches = microbatches};
    EXPECT_EQ(make_schedule("interleaved", options).actions, make_schedule("1f1b", options).actions);
  });
}
TEST(Interleaved, PassesChunksInGroupsOfOneMicrobatchPerRank) {
  const Schedule schedule = make_schedule("interleaved", {.ranks = 2, .chunks = 2, .microbatches = 4});
  EXPECT_EQ(row_text(schedule, 0), "0F0 0F1 2F0 2F1 0F2 2B0 0F3 2B1 2F2 0B0 2F3 0B1 2B2 2B3 0B2 0B3");
  EXPECT_EQ(row_text(schedule, 1), "1F0 1F1 3F0 3B0 3F1 3B1 1F2 1B0 1F3 1B1 3F2 3B2 3F3 3B3 1B2 1B3");
}
TEST(Interleaved, MakesGroupsLargerWhereRanksDoNotDivideMicrobatches) {
  const Schedule schedule = make_schedule("interleaved", {.ranks = 2, .chunks = 2, .microbatches = 5});
  EXPECT_THAT(row_text(schedule, 1), ::testing::StartsWith("1F0 1F1 1F2 3F0 3B0"));
}
TEST(Interleaved, HoldsItsClosedFormWhereRanksDivideMicrobatches) {
  for (int chunks = 2; chunks <= 4; ++chunks) {
    over_sizes([&](int p, int m) {
      if (m % p != 0) return;
      const std::vector<int> held = peaks("interleaved", p, m, chunks);
      for (int r = 0; r < p; ++r) {
        EXPECT_EQ(held[static_cast<std::size_t>(r)], std::min(m * chunks, (chunks - 1) * p + 2 * (p - 1 - r) + 1));
      }
    });
  }
}

TEST(ZbH1, DelaysWeightsByOneMicrobatchPerRank) {
  const Schedule schedule = make_schedule("zb-h1", {.ranks = 2, .microbatches = 3});
  EXPECT_EQ(row_text(schedule, 0), "0F0 0F1 0I0 0W0 0F2 0I1 0W1 0I2 0W2");
  EXPECT_EQ(row_text(schedule, 1), "1F0 1I0 1F1 1I1 1W0 1F2 1I2 1W1 1W2");
}
TEST(ZbH1, HoldsOneMicrobatchPerRankOnEveryRank) {
  over_sizes([](int p, int m) {
    EXPECT_EQ(peaks("zb-h1", p, m), std::vector<int>(static_cast<std::size_t>(p), std::min(m, p)));
  });
}
TEST(ZbH2, HoldsNearlyTwiceAsMany) {
  over_sizes([](int p, int m) {
    EXPECT_EQ(peaks("zb-h2", p, m), std::vector<int>(static_cast<std::size_t>(p), std::min(m, 2 * p - 1)));
  });
}

TEST(Zbv, PutsTheFirstAndTheLastStageOnTheFirstRank) {
  EXPECT_EQ(make_schedule("zbv", {.ranks = 3, .microbatches = 6}).rank_of_stage, (std::vector<int>{0, 1, 2, 2, 1, 0}));
}
TEST(Zbv, HoldsTwoChunksPerRankOnEveryRank) {
  over_sizes([](int p, int m) {
    if (m < 2 * p - 1) return;
    EXPECT_EQ(peaks("zbv", p, m), std::vector<int>(static_cast<std::size_t>(p), 2 * p)) << p << " " << m;
  });
}
TEST(DualPipeV, HoldsOneChunkMore) {
  over_sizes([](int p, int m) {
    if (m < 2 * p) return;
    EXPECT_EQ(peaks("dualpipev", p, m), std::vector<int>(static_cast<std::size_t>(p), 2 * p + 1)) << p << " " << m;
  });
}
TEST(DualPipeV, SplitsOnlyWhatFillsTheEnds) {
  const Schedule schedule = make_schedule("dualpipev", {.ranks = 2, .microbatches = 4});
  EXPECT_EQ(row_text(schedule, 0), "0F0 0F1 0F2 3F0 3I0 3W0 3F1 0F3 3B1 3F2 0B0 3B2 3F3 0B1 3B3 0I2 0W2 0I3 0W3");
  EXPECT_EQ(row_text(schedule, 1), "1F0 2F0 1F1 2F1 1F2 2B0 2F2 1B0 1F3 2B1 2F3 1B1 2B2 1B2 2I3 1I3 2W3 1W3");
}
TEST(DualPipeV, RefusesFewerThanTwoMicrobatchesPerRank) {
  EXPECT_EQ(message_of([] { (void)make_schedule("dualpipev", {.ranks = 4, .microbatches = 7}); }),
            "schedule \"dualpipev\" on 4 ranks with 7 micro-batches; allowed: 8 or more; cut the batch finer");
}

TEST(MakeSchedule, RefusesAnUnknownNameAndSuggestsTheNearest) {
  EXPECT_THAT(message_of([] { (void)make_schedule("1f1f", {}); }), HasSubstr("did you mean \"1f1b\"?"));
}
TEST(MakeSchedule, RefusesChunksThatTheScheduleDoesNotTake) {
  EXPECT_EQ(message_of([] { (void)make_schedule("1f1b", {.ranks = 2, .chunks = 3, .microbatches = 4}); }),
            "schedule \"1f1b\" with 3 chunks per rank; allowed: 1; leave chunks out for its own number");
}
TEST(MakeSchedule, RefusesNumbersBelowOneAndAbsurdOnes) {
  EXPECT_THAT(message_of([] { (void)make_schedule("1f1b", {.ranks = 0}); }),
              HasSubstr("on 0 ranks; allowed: 1 or more"));
  EXPECT_THAT(message_of([] { (void)make_schedule("1f1b", {.microbatches = 0}); }), HasSubstr("0 micro-batches"));
  EXPECT_THAT(message_of([] { (void)make_schedule("1f1b", {.chunks = -1}); }), HasSubstr("-1 chunks"));
  EXPECT_THAT(message_of([] { (void)make_schedule("1f1b", {.ranks = 1 << 20, .microbatches = 1 << 20}); }),
              HasSubstr("forwards or fewer"));
}

}  // namespace
}  // namespace tessera::pipeline
