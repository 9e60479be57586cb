// SPDX-License-Identifier: Apache-2.0
// Ranks as real processes: shared memory is found, a death is noticed, nothing is left behind.
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <string>
#include <vector>

#include "comm/gloo_backend.h"

extern char** environ;

namespace tessera::comm::testing {

namespace {

// Runs SIZE processes of the helper to their end; their exit codes.
std::vector<int> exit_codes(const std::string& transport, int size, const std::string& scenario) {
  const std::filesystem::path store = std::filesystem::temp_directory_path() /
                                      ("tessera_store_" + std::to_string(getpid()) + "_" + transport + scenario);
  std::filesystem::remove(store);
  std::vector<pid_t> processes;
  for (int rank = 0; rank < size; ++rank) {
    std::vector<std::string> words{TESSERA_RANK_PROCESS, transport, store.string(), std::to_string(rank),
                                   std::to_string(size), scenario};
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    pid_t process = 0;
    EXPECT_EQ(posix_spawn(&process, words[0].c_str(), nullptr, nullptr, arguments.data(), environ), 0);
    processes.push_back(process);
  }
  std::vector<int> codes;
  for (const pid_t process : processes) {
    int status = 0;
    EXPECT_EQ(waitpid(process, &status, 0), process);
    codes.push_back(WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
  }
  std::filesystem::remove(store);
  return codes;
}

std::size_t named_shared_memory() {
  std::size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm")) {
    count += entry.path().string().find("tessera") != std::string::npos ? 1 : 0;
  }
  return count;
}

TEST(ShmProcesses, AgreeOnCollectivesAndMessagesOn3Ranks) {
  EXPECT_EQ(exit_codes("shm", 3, "collectives"), std::vector<int>(3, 0));
  EXPECT_EQ(named_shared_memory(), 0U);
}

TEST(ShmProcesses, NoticeThatAPeerHasEndedOn2Ranks) {
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(exit_codes("shm", 2, "death"), std::vector<int>(2, 0));
  // The deadline of the ranks is a minute.
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(50));
}

TEST(ShmProcesses, TakePartInWhatTheyPostedBeforeTheyEndOn3Ranks) {
  EXPECT_EQ(exit_codes("shm", 3, "posted"), std::vector<int>(3, 0));
}

TEST(GlooProcesses, AgreeOnCollectivesAndMessagesOn2Ranks) {
  if (!detail::has_gloo()) GTEST_SKIP() << "this build has no gloo";
  EXPECT_EQ(exit_codes("gloo", 2, "collectives"), std::vector<int>(2, 0));
}

}  // namespace

}  // namespace tessera::comm::testing
