// SPDX-License-Identifier: Apache-2.0
// launch() as a user sees it: the program's output and exit code.
#include "tessera/launch/launch.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "launch/job_support.h"
#include "launch/sockets.h"

namespace tessera::launcher {
namespace {

using test::count_of;
using test::run_shell;

const std::string kProgram = TESSERA_RANK_PROGRAM;

TEST(Launch, IsAWorldOfOneWithoutALauncher) {
  const auto result = run_shell(kProgram + " source");
  EXPECT_EQ(result.exit_code, 0) << result.output;
  EXPECT_EQ(result.output, "none single\n");
}

TEST(Launch, StartsLocalRanksAndTakesItsFlagAwayOn2Ranks) {
  const auto result = run_shell(kProgram + " --nproc 2 arguments -1");
  EXPECT_EQ(result.exit_code, 0) << result.output;
  EXPECT_EQ(count_of(result.output, "argc=3 last=-1 rank=0 of 2\n"), 1) << result.output;
  EXPECT_EQ(count_of(result.output, "argc=3 last=-1 rank=1 of 2\n"), 1) << result.output;
}

TEST(Launch, PrintsTheFirstCauseOnceOn4Ranks) {
  const auto result = run_shell(kProgram + " config --nproc=4");
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_EQ(count_of(result.output, "tessera: error: "), 1) << result.output;
  EXPECT_EQ(count_of(result.output,
                     "tessera: error: ranks 0-3 of 4: heads=12 cannot be split over tp=8; choose a tp "
                     "that divides 12\n"),
            1)
      << result.output;
}

TEST(Launch, ReportsExceptionsThatNobodyCatches) {
  const auto alone = run_shell(kProgram + " unguarded");
  EXPECT_EQ(alone.exit_code, 2);
  EXPECT_EQ(alone.output, "tessera: error: nobody catches this\n");
  const auto ranks = run_shell(kProgram + " unguarded --nproc 2");
  EXPECT_EQ(ranks.exit_code, 2);
  EXPECT_EQ(count_of(ranks.output, "tessera: error: "), 1) << ranks.output;
  EXPECT_EQ(count_of(ranks.output, "tessera: error: ranks 0-1 of 2: nobody catches this\n"), 1) << ranks.output;
}

TEST(Launch, RefusesContradictoryVariablesWithoutAStackTrace) {
  const auto result = run_shell("RANK=4 WORLD_SIZE=4 " + kProgram + " succeed");
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_EQ(count_of(result.output, "\n"), 1) << result.output;
  EXPECT_EQ(count_of(result.output, "RANK=4 does not fit WORLD_SIZE=4"), 1) << result.output;
}

TEST(Launch, RefusesAFlagThatContradictsTheLauncher) {
  const auto result = run_shell("RANK=0 WORLD_SIZE=1 " + kProgram + " succeed --nproc 2");
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_EQ(count_of(result.output, "--nproc 2: this process is already one of 1 local ranks by torchrun"), 1)
      << result.output;
}

TEST(Launch, HandsTheTransportToItsRanksOn2Ranks) {
  const auto result = run_shell(kProgram + " --transport gloo source --nproc 2");
  EXPECT_EQ(result.exit_code, 0) << result.output;
  EXPECT_EQ(count_of(result.output, "tessera run gloo\n"), 2) << result.output;
}

TEST(Launch, RefusesAnUnknownTransport) {
  const auto result = run_shell(kProgram + " succeed --nproc 2 --transport pigeon");
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_EQ(count_of(result.output, "transport pigeon is not known"), 1) << result.output;
}

/// Starts two ranks from a shell, as torchrun or mpirun would, and returns both outputs.
test::ShellResult run_two(const std::string& common, const std::string& first, const std::string& second) {
  return run_shell(fmt::format("{0} {1} {3} source & pid=$!; {0} {2} {3} source; code=$?; wait $pid && exit $code",
                               common, first, second, kProgram));
}

TEST(Launch, MeetsThroughMasterAddrUnderTorchrunsVariablesOn2Ranks) {
  const auto common =
      fmt::format("WORLD_SIZE=2 LOCAL_WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT={}", detail::find_free_port());
  const auto result = run_two(common, "RANK=0 LOCAL_RANK=0", "RANK=1 LOCAL_RANK=1");
  EXPECT_EQ(result.exit_code, 0) << result.output;
  EXPECT_EQ(count_of(result.output, "torchrun shm\n"), 2) << result.output;
  EXPECT_EQ(count_of(result.output, "tessera: 2 ranks by torchrun"), 1) << result.output;
}

TEST(Launch, MeetsUnderOpenMpisVariablesOn2Ranks) {
  const auto common =
      fmt::format("OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_SIZE=2 MASTER_PORT={}", detail::find_free_port());
  const auto result = run_two(common, "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_LOCAL_RANK=0",
                              "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_LOCAL_RANK=1");
  EXPECT_EQ(result.exit_code, 0) << result.output;
  EXPECT_EQ(count_of(result.output, "Open MPI shm\n"), 2) << result.output;
}

TEST(Launch, NamesItsRankWhenALauncherOfOthersRunsIt) {
  const auto common = fmt::format("RANK=1 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT={}", detail::find_free_port());
  const auto result = run_shell(common + " LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 TESSERA_TIMEOUT=never " + kProgram + " x");
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_EQ(count_of(result.output, "tessera: error: rank 1 of 2: TESSERA_TIMEOUT=never"), 1) << result.output;
}

}  // namespace
}  // namespace tessera::launcher
