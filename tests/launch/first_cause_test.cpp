// SPDX-License-Identifier: Apache-2.0
// Of many failures the one that caused the others is named.
#include "launch/first_cause.h"

#include <gtest/gtest.h>

#include <csignal>

namespace tessera::launcher::detail {
namespace {

using std::chrono::milliseconds;

const auto kStart = std::chrono::steady_clock::time_point(milliseconds(1000));

RankRecord said(const std::string& kind, const std::string& message, int at_ms, int exit_code = kExitFailed) {
  return {.pid = 1,
          .arrived = true,
          .report = FailureReport{kind, message, exit_code},
          .end = ProcessEnd{exit_code, 0},
          .failed_at = kStart + milliseconds(at_ms)};
}

RankRecord died(int signal, int exit_code, int at_ms, bool arrived = true) {
  return {.pid = 7,
          .arrived = arrived,
          .report = {},
          .end = ProcessEnd{exit_code, signal},
          .failed_at = kStart + milliseconds(at_ms)};
}

RankRecord running() { return {.pid = 2, .arrived = true, .report = {}, .end = {}, .failed_at = {}}; }

TEST(FirstCause, ADeathOutranksEarlierComplaintsOfPeers) {
  const auto result = find_first_cause({said("communication", "peer left", 1), running(), died(SIGKILL, 0, 50)});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_EQ(result.first_failure->rank, 2);
  EXPECT_EQ(result.first_failure->kind, "rank_died");
  EXPECT_EQ(result.first_failure->message.find("rank 2 of 3 (pid 7) was killed by SIGKILL"), 0U);
}

TEST(FirstCause, AmongOwnMistakesTheEarliestCounts) {
  const auto result = find_first_cause({died(0, 3, 9), said("file", "no file", 5)});
  EXPECT_EQ(result.first_failure->rank, 1);
  EXPECT_EQ(result.first_failure->kind, "file");
  EXPECT_EQ(result.first_failure->message, "rank 1 of 2: no file");
}

TEST(FirstCause, EqualMessagesAreOneWithAListOfRanks) {
  const auto result = find_first_cause(
      {said("config", "bad lr", 3, 2), said("config", "bad lr", 2, 2), running(), said("config", "bad lr", 4, 2)});
  EXPECT_EQ(result.exit_code, kExitConfig);
  EXPECT_EQ(result.first_failure->rank, 1);
  EXPECT_EQ(result.first_failure->ranks, (std::vector<int>{0, 1, 3}));
  EXPECT_EQ(result.first_failure->message, "ranks 0-1, 3 of 4: bad lr");
}

TEST(FirstCause, ADeathBeforeTheRendezvousNamesWhoWaited) {
  const auto result = find_first_cause({running(), died(SIGSEGV, 0, 1, false), running()});
  EXPECT_EQ(result.first_failure->kind, "rendezvous");
  EXPECT_NE(result.first_failure->message.find("SIGSEGV"), std::string::npos);
  EXPECT_NE(result.first_failure->message.find("ranks 0, 2 of 3 waited"), std::string::npos);
}

TEST(FirstCause, AnExitCodeTwoWithoutAReportIsNoConfigError) {
  EXPECT_EQ(find_first_cause({died(0, 2, 1)}).exit_code, 1);
}

}  // namespace
}  // namespace tessera::launcher::detail
