// SPDX-License-Identifier: Apache-2.0
// What each generator makes: order, memory, and what it asks of its options.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "pipeline/refusal.h"
#include "tessera/pipeline/schedule.h"

namespace tessera::pipeline {
namespace {

using ::testing::HasSubstr;
using test::message_of;

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

TEST(MakeSchedule, RefusesAnUnknownNameAndSuggestsTheNearest) {
  EXPECT_THAT(message_of([] { (void)make_schedule("1f1f", {}); }), HasSubstr("did you mean \"1f1b\"?"));
}
TEST(MakeSchedule, RefusesChunksThatTheScheduleDoesNotTake) {
  EXPECT_EQ(message_of([] { (void)make_schedule("1f1b", {.ranks = 2, .chunks = 3, .microbatches = 4}); }),
            "schedule \"1f1b\" with 3 chunks per rank; allowed: 1; leave chunks out for its own number");
}
TEST(MakeSchedule, RefusesNumbersBelowOneAndAbsurdOnes) {
  EXPECT_THAT(message_of([] { (void)make_schedule("1f1b", {.ranks = 0}); }), HasSubstr("on 0 ranks; allowed: 1 or more"));
  EXPECT_THAT(message_of([] { (void)make_schedule("1f1b", {.microbatches = 0}); }), HasSubstr("0 micro-batches"));
  EXPECT_THAT(message_of([] { (void)make_schedule("1f1b", {.chunks = -1}); }), HasSubstr("-1 chunks"));
  EXPECT_THAT(message_of([] { (void)make_schedule("1f1b", {.ranks = 1 << 20, .microbatches = 1 << 20}); }),
              HasSubstr("forwards or fewer"));
}

}  // namespace
}  // namespace tessera::pipeline
