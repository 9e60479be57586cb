// SPDX-License-Identifier: Apache-2.0
// One rank of the process tests: does what its arguments say, in the order in which a real program would.
//
//   rank_program MODE [RANK] [FOLDER]     RANK is the one that misbehaves; pids are left in FOLDER
#include <ATen/ops/ones.h>
#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <fstream>
#include <numeric>
#include <string>
#include <string_view>
#include <thread>

#include "tessera/base/error.h"
#include "tessera/launch/failure.h"
#include "tessera/launch/launch.h"

namespace {

using tessera::Ranks;

void leave_pid(const std::string& folder) {
  std::ofstream(fmt::format("{}/{}.tmp", folder, getpid())) << getpid();
  std::rename(fmt::format("{}/{}.tmp", folder, getpid()).c_str(), fmt::format("{}/{}.pid", folder, getpid()).c_str());
}

tessera::comm::Communicator everyone(const Ranks& ranks) {
  std::vector<int> members(static_cast<std::size_t>(ranks.size()));
  std::iota(members.begin(), members.end(), 0);
  return ranks.world()->group(members, "all");
}

int add_up(const tessera::comm::Communicator& group) {
  auto tensor = at::ones({8});
  group.all_reduce(tensor);
  return tensor.equal(at::ones({8}).mul_(group.size())) ? 0 : 5;
}

/// The rank of the launcher's variables before launch() was called.
bool is_rank(int rank) { return tessera::launcher::process_environment()("RANK") == std::to_string(rank); }

/// Called while the others are already waiting in a collective.
int misbehave(const std::string& mode) {
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  if (mode == "exit") std::_Exit(3);
  if (mode == "kill") std::raise(SIGKILL);
  if (mode == "throw") throw tessera::FileError("data.bin: no such file; check the path");
  if (mode == "torch") at::ones({2}).add_(at::ones({3}));
  std::this_thread::sleep_for(std::chrono::minutes(10));  // "frozen"
  return 4;
}

std::string mode_of(int argc, char** argv) { return argc > 1 ? argv[1] : "none"; }
int bad_rank_of(int argc, char** argv) { return argc > 2 ? std::atoi(argv[2]) : -1; }

int run(int argc, char** argv) {
  std::string mode = mode_of(argc, argv);
  int bad_rank = bad_rank_of(argc, argv);
  if (mode == "kill-early" && is_rank(bad_rank)) {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    std::raise(SIGKILL);
  }
  tessera::LaunchOptions options;
  if (mode == "mismatch") options.agree_on["config"] = is_rank(bad_rank) ? "b" : "a";
  const Ranks ranks = tessera::launch(argc, argv, options);
  mode = mode_of(argc, argv);  // launch's own flags may have stood in front
  bad_rank = bad_rank_of(argc, argv);
  if (mode == "stubborn") std::signal(SIGINT, SIG_IGN);
  if (argc > 3) leave_pid(argv[3]);
  if (mode == "config") throw tessera::ConfigError("heads=12 cannot be split over tp=8; choose a tp that divides 12");
  if (mode == "sleep" || mode == "stubborn") std::this_thread::sleep_for(std::chrono::minutes(10));
  if (mode == "arguments")
    fmt::print("argc={} last={} rank={} of {}\n", argc, argv[argc - 1], ranks.rank(), ranks.size());
  if (mode == "source") fmt::print("{} {}\n", tessera::launcher::name_of(ranks.source()), ranks.world()->transport());
  const auto group = everyone(ranks);
  if (bad_rank >= 0 && ranks.rank() == bad_rank) return misbehave(mode);
  return add_up(group);
}

}  // namespace

int main(int argc, char** argv) {
  if (mode_of(argc, argv) == "unguarded") {
    const Ranks ranks = tessera::launch(argc, argv);
    throw tessera::ConfigError("nobody catches this");
  }
  return tessera::launcher::guarded_main([&] { return run(argc, argv); });
}
