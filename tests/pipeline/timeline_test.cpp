// SPDX-License-Identifier: Apache-2.0
// The ideal timeline against closed forms and against numbers worked out elsewhere; the picture.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "pipeline/refusal.h"
#include "tessera/pipeline/timeline.h"

namespace tessera::pipeline {
namespace {

using test::message_of;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr double kExact = 1e-9;

/// Times of a rank's whole share; a chunk takes 1/v of it.
struct Share {
  double forward = 1;
  double input = 1;
  double weight = 1;
  double transfer = 0;
  [[nodiscard]] double backward() const { return input + weight; }
  [[nodiscard]] double all() const { return forward + backward(); }
};

Timeline run(const std::string& name, int ranks, int microbatches, const Share& share, int chunks = 0) {
  const Schedule schedule = make_schedule(name, {.ranks = ranks, .chunks = chunks, .microbatches = microbatches});
  const double part = 1.0 / schedule.num_chunks;
  return ideal_timeline(schedule, {.forward_ms = {share.forward * part},
                                   .backward_input_ms = {share.input * part},
                                   .backward_weight_ms = {share.weight * part},
                                   .transfer_ms = share.transfer});
}

const Share kShares[] = {{1, 1, 1}, {1, 2, 0.5}, {2, 1, 1}, {1, 1, 1.2}, {0.7, 1.9, 1.3}, {1, 0.5, 3}};

/// Calls `call(ranks, microbatches)` for p in 1..8 and m from `fewest(p)` to 4p.
template <class Fewest, class Call>
void over_sizes(const Fewest& fewest, const Call& call) {
  for (int ranks = 1; ranks <= 8; ++ranks) {
    for (int microbatches = std::max(1, fewest(ranks)); microbatches <= 4 * ranks; ++microbatches) {
      SCOPED_TRACE(fmt::format("{} ranks, {} micro-batches", ranks, microbatches));
      call(ranks, microbatches);
    }
  }
}
int any(int /*ranks*/) { return 1; }
int one_each(int ranks) { return ranks; }

TEST(Makespan, OfGpipeIsItsClosedForm) {
  for (const Share& share : kShares) {
    for (const double transfer : {0.0, 0.3, 2.0}) {
      over_sizes(any, [&](int p, int m) {
        const Share with{share.forward, share.input, share.weight, transfer};
        EXPECT_NEAR(run("gpipe", p, m, with).makespan, (m + p - 1) * share.all() + 2 * transfer * (p - 1), kExact);
      });
    }
  }
}

TEST(Makespan, OfOneForwardOneBackwardIsItsClosedForm) {
  for (const Share& share : kShares) {
    over_sizes(
        any, [&](int p, int m) { EXPECT_NEAR(run("1f1b", p, m, share).makespan, (m + p - 1) * share.all(), kExact); });
  }
}

TEST(Makespan, OfOneForwardOneBackwardGrowsWithTransfersAndMicrobatches) {
  for (const double transfer : {0.1, 0.5, 1.0, 3.0}) {
    over_sizes(one_each, [&](int p, int m) {
      if (p == 1 || m % p != 0) return;
      const double waits = 2 * transfer * ((p - 1.0) * m / p + (p - 2));
      EXPECT_NEAR(run("1f1b", p, m, {1, 1, 1, transfer}).makespan, (m + p - 1) * 3.0 + waits, kExact);
    });
  }
}

TEST(Makespan, OfInterleavedIsItsClosedFormAlsoWhereRanksDoNotDivideMicrobatches) {
  for (const Share& share : kShares) {
    for (int v = 1; v <= 4; ++v) {
      over_sizes(one_each, [&](int p, int m) {
        EXPECT_NEAR(run("interleaved", p, m, share, v).makespan, m * share.all() + (p - 1) * share.all() / v, kExact)
            << v;
      });
    }
  }
}

TEST(Makespan, OfInterleavedHidesShortTransfersButForTheWayThroughAllStages) {
  for (int v = 2; v <= 4; ++v) {
    over_sizes(one_each, [&](int p, int m) {
      if (p == 1 || m % p != 0) return;
      const double c = 1.0 / v;
      EXPECT_NEAR(run("interleaved", p, m, {1, 1, 1, c}, v).makespan, m * 3.0 + (p - 1) * 3.0 / v + 2 * c * (p * v - 1),
                  kExact)
          << v;
    });
  }
}

TEST(Makespan, OfZbH1IsItsClosedForm) {
  for (const Share& share : kShares) {
    over_sizes(one_each, [&](int p, int m) {
      const double bubble = std::max({share.forward + share.input - share.weight, share.forward, share.input});
      EXPECT_NEAR(run("zb-h1", p, m, share).makespan, m * share.all() + (p - 1) * bubble, kExact);
    });
  }
}

/// No rank idles between its first and its last action, and the last action is `delay` per rank late.
void expect_no_gaps(const char* name, int p, int m, double delay) {
  const Timeline timeline = run(name, p, m, {});
  EXPECT_NEAR(timeline.makespan, m * 3.0 + (p - 1) * delay, kExact);
  for (const double idle : timeline.idle_inside) EXPECT_NEAR(idle, 0, kExact);
}

TEST(Makespan, OfZbH2HasNoGapInsideARank) {
  over_sizes([](int p) { return 2 * p - 1; }, [](int p, int m) { expect_no_gaps("zb-h2", p, m, 1); });
}
TEST(Makespan, OfZbvHasNoGapInsideARank) {
  over_sizes([](int p) { return 2 * p - 1; }, [](int p, int m) { expect_no_gaps("zbv", p, m, 0.5); });
}
TEST(Makespan, OfDualPipeVIsItsClosedForm) {
  over_sizes([](int p) { return 2 * p; },
             [](int p, int m) { EXPECT_NEAR(run("dualpipev", p, m, {}).makespan, m * 3.0 + (p - 1) * 0.5, kExact); });
}

TEST(Makespan, HasTheGoldenValues) {
  const Share f1_b2{1, 1, 1};
  EXPECT_NEAR(run("1f1b", 4, 8, f1_b2).makespan, 33, kExact);
  EXPECT_NEAR(run("1f1b", 4, 8, {1, 1, 1, 0.5}).makespan, 41, kExact);
  EXPECT_NEAR(run("interleaved", 4, 8, f1_b2, 2).makespan, 28.5, kExact);
  EXPECT_NEAR(run("zb-h1", 4, 8, f1_b2).makespan, 27, kExact);
  EXPECT_NEAR(run("zb-h1", 4, 8, {1, 1, 1.2}).makespan, 28.6, kExact);
  EXPECT_NEAR(run("zbv", 4, 8, f1_b2).makespan, 25.5, kExact);
}

TEST(Makespan, DependsOnWhereTheSlowStageIs) {
  const Schedule schedule = make_schedule("1f1b", {.ranks = 8, .microbatches = 64});
  const auto with_slow = [&](std::size_t stage) {
    Costs costs{std::vector<double>(8, 1.0), std::vector<double>(8, 1.0), std::vector<double>(8, 1.0)};
    for (auto* times : {&costs.forward_ms, &costs.backward_input_ms, &costs.backward_weight_ms}) (*times)[stage] = 1.5;
    return ideal_timeline(schedule, costs).makespan;
  };
  EXPECT_NEAR(with_slow(0), 298.5, kExact);
  EXPECT_NEAR(with_slow(3), 303.0, kExact);
  EXPECT_NEAR(with_slow(7), 309.0, kExact);
}

TEST(Makespan, IsNeverBelowTheWayToARankAndBackWithItsWork) {
  for (const char* name : {"gpipe", "1f1b"}) {
    over_sizes(any, [&](int p, int m) {
      Costs costs{{}, {}, {}};
      for (int stage = 0; stage < p; ++stage) {
        costs.forward_ms.push_back(1 + (stage * 7 + m) % 5);
        costs.backward_input_ms.push_back(1 + (stage * 3 + m) % 4);
        costs.backward_weight_ms.push_back(1 + (stage * 5 + m) % 3);
      }
      const double makespan = ideal_timeline(make_schedule(name, {.ranks = p, .microbatches = m}), costs).makespan;
      double way = 0;
      for (std::size_t stage = 0; stage < static_cast<std::size_t>(p); ++stage) {
        const double work = costs.forward_ms[stage] + costs.backward_input_ms[stage] + costs.backward_weight_ms[stage];
        EXPECT_GE(makespan, way + m * work - kExact);
        way += work;
      }
    });
  }
}

TEST(Makespan, OfAnOrderOfOnesOwnIsRightToo) {
  // 1f1b with 2(p-1-r)+1 forwards before the first backward, which hides transfers.
  Schedule eager = make_schedule("1f1b", {.ranks = 4, .microbatches = 8});
  for (int rank = 0; rank < 4; ++rank) {
    std::vector<Action>& row = eager.actions[static_cast<std::size_t>(rank)];
    row.clear();
    int started = 0;
    while (started < 2 * (3 - rank)) row.push_back({ActionKind::kForward, rank, started++});
    for (int microbatch = 0; microbatch < 8; ++microbatch) {
      if (started < 8) row.push_back({ActionKind::kForward, rank, started++});
      row.push_back({ActionKind::kBackward, rank, microbatch});
    }
  }
  validate(eager);
  EXPECT_NEAR(ideal_timeline(eager, {.transfer_ms = 0.5}).makespan, 36, kExact);
  EXPECT_EQ(peak_activations(eager), (std::vector<int>{7, 5, 3, 1}));
}

TEST(Makespan, OfOneRankIsTheSumOfItsWork) {
  for (const std::string& name : schedule_names())
    EXPECT_NEAR(run(name, 1, 5, {1, 0.5, 2}).makespan, 5 * 3.5, kExact) << name;
}

TEST(Makespan, ScalesWithAllTimesAndNeverFallsWhenOneGrows) {
  for (const std::string& name : schedule_names()) {
    const Share share{1, 1.25, 0.75, 0.25};
    const double makespan = run(name, 4, 9, share).makespan;
    EXPECT_NEAR(run(name, 4, 9, {3, 3.75, 2.25, 0.75}).makespan, 3 * makespan, kExact) << name;
    for (const Share& slower : {Share{1.1, 1.25, 0.75, 0.25}, Share{1, 1.5, 0.75, 0.25}, Share{1, 1.25, 0.8, 0.25},
                                Share{1, 1.25, 0.75, 0.3}}) {
      EXPECT_GE(run(name, 4, 9, slower).makespan, makespan) << name;
    }
  }
}

TEST(Timeline, StartsNothingBeforeWhatItNeeds) {
  for (const std::string& name : schedule_names()) {
    const Schedule schedule = make_schedule(name, {.ranks = 4, .microbatches = 9});
    const Costs costs{{1.0}, {0.5}, {0.75}, 0.25};
    const Timeline timeline = ideal_timeline(schedule, costs);
    const auto span_of = [&](ActionKind kind, int stage, int microbatch) -> const Span* {
      const auto rank = static_cast<std::size_t>(schedule.rank_of_stage[static_cast<std::size_t>(stage)]);
      const auto& row = schedule.actions[rank];
      const auto found = std::find(row.begin(), row.end(), Action{kind, stage, microbatch});
      return found == row.end() ? nullptr : &timeline.spans[rank][static_cast<std::size_t>(found - row.begin())];
    };
    for (int stage = 1; stage < schedule.num_stages(); ++stage) {
      const auto at = static_cast<std::size_t>(stage);
      const double transfer = schedule.rank_of_stage[at] == schedule.rank_of_stage[at - 1] ? 0 : 0.25;
      for (int microbatch = 0; microbatch < 9; ++microbatch) {
        EXPECT_GE(span_of(ActionKind::kForward, stage, microbatch)->start,
                  span_of(ActionKind::kForward, stage - 1, microbatch)->end + transfer - kExact);
        const auto backward = [&](int of) {
          const Span* whole = span_of(ActionKind::kBackward, of, microbatch);
          return whole != nullptr ? whole : span_of(ActionKind::kBackwardInput, of, microbatch);
        };
        EXPECT_GE(backward(stage - 1)->start, backward(stage)->end + transfer - kExact);
      }
    }
  }
}

TEST(Timeline, SharesTheMakespanBetweenWorkAndBubble) {
  const Timeline timeline = run("1f1b", 4, 8, {});
  for (std::size_t rank = 0; rank < 4; ++rank) {
    EXPECT_NEAR(timeline.busy[rank], 24, kExact);
    EXPECT_NEAR(timeline.bubble[rank], 9.0 / 33, kExact);
  }
  EXPECT_NEAR(timeline.mean_bubble(), 9.0 / 33, kExact);
  EXPECT_NEAR(timeline.idle_inside[0], 9, kExact);
  EXPECT_NEAR(timeline.idle_inside[3], 0, kExact);
}

TEST(Timeline, RefusesCostsThatDoNotFit) {
  const Schedule schedule = make_schedule("1f1b", {.ranks = 4, .microbatches = 2});
  EXPECT_EQ(message_of([&] {
              (void)ideal_timeline(schedule, {.forward_ms = {1, 2}});
            }),
            "forward_ms has 2 times for 4 stages; allowed: 1 or 4");
  EXPECT_THAT(message_of([&] { (void)ideal_timeline(schedule, {.backward_input_ms = {-1}}); }),
              HasSubstr("allowed: 0 or more"));
  EXPECT_THAT(message_of([&] { (void)ideal_timeline(schedule, {.transfer_ms = std::nan("")}); }),
              HasSubstr("transfer_ms"));
}

TEST(Timeline, RefusesAScheduleThatDeadlocks) {
  Schedule schedule = make_schedule("1f1b", {.ranks = 2, .microbatches = 2});
  std::swap(schedule.actions[0][1], schedule.actions[0][2]);  // 0B0 before 0F1
  std::swap(schedule.actions[1][1], schedule.actions[1][2]);  // 1F1 before 1B0
  EXPECT_THAT(message_of([&] { (void)ideal_timeline(schedule, {}); }), HasSubstr("rank 0 waits forever in 0B0"));
}

std::string draw(const std::string& name, int ranks, int microbatches, const Share& share, PictureOptions options = {},
                 int chunks = 0) {
  const Schedule schedule = make_schedule(name, {.ranks = ranks, .chunks = chunks, .microbatches = microbatches});
  return picture(schedule, run(name, ranks, microbatches, share, chunks), options);
}

TEST(Picture, ShowsWhoDoesWhatWhen) {
  EXPECT_EQ(draw("1f1b", 2, 3, {}),
            "rank 0  FF..B-FB-.B-\n"
            "        01  0 21  2\n"
            "rank 1  .FB-FB-FB-..\n"
            "         00 11 22\n"
            "F forward, B backward\n"
            "micro-batch below; one column = 1\n");
}
TEST(Picture, TellsTwoChunksByCaseAndMoreByNumber) {
  EXPECT_EQ(draw("interleaved", 1, 2, {}, {}, 2),
            "rank 0  Ffb-FB-fb-B-\n"
            "        000 10 11 1\n"
            "F forward, B backward\n"
            "second chunk in lower case; micro-batch below; one column = 0.5\n");
  EXPECT_THAT(draw("interleaved", 1, 1, {}, {}, 3),
              HasSubstr("rank 0  FFFB-B-B-\n        0000 0 0\n        0122 1 0\n"));
}
TEST(Picture, FindsAColumnOfWhichEverythingIsAMultiple) {
  EXPECT_EQ(draw("gpipe", 1, 1, {1, 0.5, 1}),
            "rank 0  F-B--\n"
            "        0 0\n"
            "F forward, B backward\n"
            "micro-batch below; one column = 0.5\n");
}
TEST(Picture, RoundsWhereExactColumnsWouldBeTooMany) {
  EXPECT_THAT(draw("gpipe", 1, 1, {1, 0.5, 0.51}, {.width = 20}), HasSubstr("one column = 1, rounded"));
}
TEST(Picture, CutsWhatIsTooWideAndSaysSo) {
  const std::string text = draw("gpipe", 1, 50, {}, {.width = 60});
  EXPECT_THAT(text, HasSubstr("(cut: 52 of 150 columns; all of them need a width of 158)\n"));
  EXPECT_EQ(text.find('\n'), 60U);
}
TEST(Picture, WidensColumnsForLongNumbersWhereTheyFit) {
  EXPECT_THAT(draw("gpipe", 1, 12, {}), HasSubstr("F-F-F-B---"));
  EXPECT_THAT(draw("gpipe", 1, 12, {}, {.width = 50}), HasSubstr("FFFB-"));
}
TEST(Picture, ColoursOnlyWhereAsked) {
  EXPECT_THAT(draw("1f1b", 2, 3, {}), Not(HasSubstr("\x1b")));
  EXPECT_THAT(draw("1f1b", 2, 3, {}, {.colour = true}), HasSubstr("\x1b[30;44mFF\x1b[0m..\x1b[30;42mB-"));
}

}  // namespace
}  // namespace tessera::pipeline
