// SPDX-License-Identifier: Apache-2.0
// Real processes: how jobs end, who is blamed, and that nothing is left behind.
#include "tessera/launch/local_launcher.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <csignal>
#include <thread>

#include "launch/child_process.h"
#include "launch/job_environment.h"
#include "launch/job_support.h"
#include "tessera/base/error.h"

namespace tessera::launcher {
namespace {

using test::eventually;
using test::is_alive;
using test::pids_in;
using test::TemporaryFolder;

JobResult run_job(int num_ranks, std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), TESSERA_RANK_PROGRAM);
  return run_local_job(arguments, {.num_ranks = num_ranks});
}

void expect_nobody_left(const std::string& folder, std::size_t num_started) {
  const auto pids = pids_in(folder);
  EXPECT_EQ(pids.size(), num_started);
  for (const pid_t pid : pids) {
    EXPECT_TRUE(eventually([&] { return !is_alive(pid); })) << "pid " << pid;
  }
}

TEST(LocalJob, SucceedsWhenAllRanksDoOn4Ranks) {
  const JobResult result = run_job(4, {"succeed"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_FALSE(result.first_failure.has_value()) << result.first_failure->message;
}

TEST(LocalJob, NamesTheRankThatExitsOn4Ranks) {
  const TemporaryFolder folder;
  const JobResult result = run_job(4, {"exit", "2", folder.path()});
  EXPECT_EQ(result.exit_code, 1);
  ASSERT_TRUE(result.first_failure.has_value());
  EXPECT_EQ(result.first_failure->rank, 2);
  EXPECT_EQ(result.first_failure->kind, "rank_died");
  EXPECT_NE(result.first_failure->message.find("rank 2 of 4 (pid "), std::string::npos);
  EXPECT_NE(result.first_failure->message.find("exited with code 3"), std::string::npos);
  expect_nobody_left(folder.path(), 4);
}

TEST(LocalJob, NamesTheRankThatIsKilledWhileTheOthersSitInACollectiveOn4Ranks) {
  const TemporaryFolder folder;
  const JobResult result = run_job(4, {"kill", "1", folder.path()});
  EXPECT_EQ(result.exit_code, 1);
  ASSERT_TRUE(result.first_failure.has_value());
  EXPECT_EQ(result.first_failure->rank, 1);
  EXPECT_EQ(result.first_failure->kind, "rank_died");
  EXPECT_NE(result.first_failure->message.find("was killed by SIGKILL"), std::string::npos)
      << result.first_failure->message;
  expect_nobody_left(folder.path(), 4);
}

TEST(LocalJob, NamesTheRankThatDiesBeforeTheRendezvousAndWhoWaitedOn3Ranks) {
  const JobResult result = run_job(3, {"kill-early", "0"});
  EXPECT_EQ(result.exit_code, 1);
  ASSERT_TRUE(result.first_failure.has_value());
  EXPECT_EQ(result.first_failure->rank, 0);
  EXPECT_NE(result.first_failure->message.find("rank 0 of 3"), std::string::npos);
  EXPECT_NE(result.first_failure->message.find("SIGKILL"), std::string::npos);
}

TEST(LocalJob, CarriesTheMessageOfTheRankThatThrowsOn3Ranks) {
  const TemporaryFolder folder;
  const JobResult result = run_job(3, {"throw", "1", folder.path()});
  EXPECT_EQ(result.exit_code, 1);
  ASSERT_TRUE(result.first_failure.has_value());
  EXPECT_EQ(result.first_failure->kind, "file");
  EXPECT_EQ(result.first_failure->message, "rank 1 of 3: data.bin: no such file; check the path");
  expect_nobody_left(folder.path(), 3);
}

TEST(LocalJob, StripsTorchsStackTraceOn2Ranks) {
  const JobResult result = run_job(2, {"torch", "0"});
  ASSERT_TRUE(result.first_failure.has_value());
  EXPECT_EQ(result.first_failure->kind, "torch");
  EXPECT_EQ(result.first_failure->message.find("frame #"), std::string::npos);
  EXPECT_NE(result.first_failure->message.find("rank 0 of 2: "), std::string::npos);
}

TEST(LocalJob, FoldsAMessageOfAllRanksIntoOneAndExitsWith2On4Ranks) {
  const JobResult result = run_job(4, {"config"});
  EXPECT_EQ(result.exit_code, 2);
  ASSERT_TRUE(result.first_failure.has_value());
  EXPECT_EQ(result.first_failure->kind, "config");
  EXPECT_EQ(result.first_failure->message,
            "ranks 0-3 of 4: heads=12 cannot be split over tp=8; choose a tp that divides 12");
}

TEST(LocalJob, RefusesRanksThatDisagreeOnTheConfigurationOn3Ranks) {
  const JobResult result = run_job(3, {"mismatch", "2"});
  EXPECT_EQ(result.exit_code, 2);
  ASSERT_TRUE(result.first_failure.has_value());
  EXPECT_EQ(result.first_failure->kind, "config_mismatch");
  EXPECT_NE(result.first_failure->message.find("rank 0 has config=a but rank 2 has config=b"), std::string::npos)
      << result.first_failure->message;
}

TEST(LocalJob, RunsProgramsThatKnowNothingOfTessera) {
  EXPECT_EQ(run_local_job({"sh", "-c", "test $RANK -lt 3 -a $WORLD_SIZE = 3 -a $LOCAL_RANK = $RANK"}, {.num_ranks = 3})
                .exit_code,
            0);
  const JobResult failed = run_local_job({"sh", "-c", "test $RANK != 2"}, {.num_ranks = 3});
  EXPECT_EQ(failed.exit_code, 1);
  EXPECT_EQ(failed.first_failure->rank, 2);
}

TEST(LocalJob, EndsWhatRanksStartedThemselves) {
  const TemporaryFolder folder;
  const std::string script = "sleep 600 & echo $! > " + folder.path() + "/child; mv " + folder.path() + "/child " +
                             folder.path() + "/$!.pid; exit 1";
  EXPECT_EQ(run_local_job({"sh", "-c", script}, {.num_ranks = 1}).exit_code, 1);
  expect_nobody_left(folder.path(), 1);
}

TEST(LocalJob, KillsRanksThatIgnoreTheRequestToEnd) {
  const JobResult result =
      run_local_job({"sh", "-c", "trap '' TERM; test $RANK = 0 && exit 7; while :; do sleep 1; done"},
                    {.num_ranks = 2, .stop_grace = std::chrono::milliseconds(100)});
  EXPECT_EQ(result.first_failure->rank, 0);
}

/// What is spawned meanwhile heeds SIGINT, though a shell may have started these tests in the background, with it ignored.
class HeedingInterrupts {
 public:
  HeedingInterrupts() : before_(std::signal(SIGINT, SIG_DFL)) {}
  ~HeedingInterrupts() { std::signal(SIGINT, before_); }
  HeedingInterrupts(const HeedingInterrupts&) = delete;
  HeedingInterrupts& operator=(const HeedingInterrupts&) = delete;

 private:
  void (*before_)(int);
};

/// The launcher as a process of its own, so that it can be signalled.
struct OwnLauncher {
  explicit OwnLauncher(const std::string& folder, const std::string& mode = "sleep") {
    const HeedingInterrupts heeding;
    auto environment = detail::current_environment();
    process = detail::spawn({.program = TESSERA_RANK_PROGRAM,
                             .arguments = {TESSERA_RANK_PROGRAM, mode, "-1", folder, "--nproc", "3"},
                             .environment = std::move(environment),
                             .inherited = {}});
  }
  detail::ChildProcess process;
};

TEST(LocalJob, NoRankOutlivesAKilledLauncherOn3Ranks) {
  const TemporaryFolder folder;
  OwnLauncher launcher(folder.path());
  ASSERT_TRUE(eventually([&] { return pids_in(folder.path()).size() == 3; }));
  ::kill(launcher.process.pid(), SIGKILL);
  expect_nobody_left(folder.path(), 3);
}

TEST(LocalJob, AnInterruptReachesEveryRankAndExitsWith130On3Ranks) {
  for (const int signal : {SIGINT, SIGTERM}) {
    const TemporaryFolder folder;
    OwnLauncher launcher(folder.path());
    ASSERT_TRUE(eventually([&] { return pids_in(folder.path()).size() == 3; }));
    ::kill(launcher.process.pid(), signal);
    std::optional<detail::ProcessEnd> end;
    EXPECT_TRUE(eventually([&] { return (end = launcher.process.poll_end()).has_value(); }));
    EXPECT_EQ(end->exit_code, 130);
    EXPECT_EQ(end->signal, 0);
    expect_nobody_left(folder.path(), 3);
  }
}

TEST(LocalJob, ASecondInterruptEndsRanksThatIgnoreTheFirstOn3Ranks) {
  const TemporaryFolder folder;
  OwnLauncher launcher(folder.path(), "stubborn");
  ASSERT_TRUE(eventually([&] { return pids_in(folder.path()).size() == 3; }));
  ::kill(launcher.process.pid(), SIGINT);
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_FALSE(launcher.process.poll_end().has_value()) << "a first interrupt lets ranks finish";
  ::kill(launcher.process.pid(), SIGINT);
  std::optional<detail::ProcessEnd> end;
  EXPECT_TRUE(eventually([&] { return (end = launcher.process.poll_end()).has_value(); }));
  EXPECT_EQ(end->exit_code, 130);
  expect_nobody_left(folder.path(), 3);
}

TEST(RankEnvironmentOfAJob, ReplacesAnOuterLaunchersIdentity) {
  const auto variables = detail::make_rank_environment(
      {"RANK=9", "OMPI_COMM_WORLD_RANK=9", "PATH=/bin", "OMP_NUM_THREADS=4", "TORCHELASTIC_RUN_ID=x", "RANKING=1"},
      {.num_ranks = 2, .master_address = "127.0.0.1", .master_port = 1234, .threads_per_rank = 1, .store_fd = 5}, 1, 6);
  const auto has = [&](const char* text) { return std::count(variables.begin(), variables.end(), text) == 1; };
  EXPECT_TRUE(has("RANK=1"));
  EXPECT_TRUE(has("WORLD_SIZE=2"));
  EXPECT_TRUE(has("MASTER_PORT=1234"));
  EXPECT_TRUE(has("TESSERA_STORE_FD=5"));
  EXPECT_TRUE(has("TESSERA_CONTROL_FD=6"));
  EXPECT_TRUE(has("PATH=/bin"));
  EXPECT_TRUE(has("RANKING=1"));
  EXPECT_TRUE(has("OMP_NUM_THREADS=4"));
  EXPECT_FALSE(has("RANK=9"));
  EXPECT_FALSE(has("OMPI_COMM_WORLD_RANK=9"));
  EXPECT_FALSE(has("TORCHELASTIC_RUN_ID=x"));
  EXPECT_FALSE(has("OMP_NUM_THREADS=1"));
}

}  // namespace
}  // namespace tessera::launcher
