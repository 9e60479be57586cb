// SPDX-License-Identifier: Apache-2.0
// Starts the ranks, watches them, finds the first cause and ends the rest.
#include "tessera/launch/local_launcher.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "launch/child_process.h"
#include "launch/control_channel.h"
#include "launch/first_cause.h"
#include "launch/job_environment.h"
#include "launch/signals.h"
#include "launch/sockets.h"
#include "tessera/base/error.h"
#include "tessera/launch/environment.h"

namespace tessera::launcher {
namespace {

using detail::Descriptor;
using Clock = std::chrono::steady_clock;

/// Upper bound of one poll: deadlines are met, and ends are seen on kernels without pidfd, within this time.
constexpr std::chrono::milliseconds kPollPeriod{100};
/// "My peer is gone" may reach us before the peer's own end does; then the real cause gets this much longer.
constexpr int kEchoPatience = 3;
constexpr int kMaxLocalRanks = 4096;

/// A file without a name or a place: ranks meet in it through an inherited descriptor.
Descriptor make_store_file() {
  Descriptor file(::memfd_create("tessera-store", MFD_CLOEXEC));
  check<Error>(static_cast<bool>(file), "starting ranks: memfd_create failed: {}", std::strerror(errno));
  return file;
}

struct RunningRank {
  detail::ChildProcess child;
  Descriptor control;
  detail::RankRecord record;
};

/// One job from its start to its end.
class LocalJob {
 public:
  LocalJob(const std::vector<std::string>& command, const JobOptions& options) : options_(options) { start(command); }

  JobResult run() {
    while (num_running() > 0) {
      wait_for_news();
      take_signals();
      take_messages();
      take_ends();
      decide();
      enforce();
    }
    decide_at_end();
    if (result_.exit_code != 0) {
      signal_all(SIGKILL);  // what ranks started in their sessions goes with them
    }
    return result_;
  }

 private:
  void start(const std::vector<std::string>& command) {
    const Descriptor store = make_store_file();
    const detail::JobVariables variables{.num_ranks = options_.num_ranks,
                                         .master_address = options_.master_address,
                                         .master_port = options_.master_port.value_or(0),
                                         .threads_per_rank = options_.threads_per_rank,
                                         .store_fd = store.get()};
    const auto environment = detail::current_environment();
    for (int rank = 0; rank < options_.num_ranks; ++rank) {
      detail::ControlPair pair = detail::make_control_pair();
      RunningRank& running = ranks_.emplace_back();
      running.child = detail::spawn(
          {.program = options_.program,
           .arguments = command,
           .environment = detail::make_rank_environment(environment, variables, rank, pair.rank_end.get()),
           .inherited = {store.get(), pair.rank_end.get()}});
      running.control = std::move(pair.launcher_end);
      running.record.pid = running.child.pid();
    }
  }

  [[nodiscard]] std::ptrdiff_t num_running() const {
    return std::count_if(ranks_.begin(), ranks_.end(), [](const RunningRank& rank) { return !rank.record.end; });
  }

  void wait_for_news() {
    std::vector<pollfd> watched{{.fd = signals_.fd(), .events = POLLIN, .revents = 0}};
    for (const RunningRank& rank : ranks_) {
      if (!rank.record.end) {
        watched.push_back({.fd = rank.child.end_fd(), .events = POLLIN, .revents = 0});
      }
      watched.push_back({.fd = rank.control.get(), .events = POLLIN, .revents = 0});
    }
    ::poll(watched.data(), watched.size(), static_cast<int>(kPollPeriod.count()));
  }

  /// The first signal is passed on, and every rank may finish its step; the second one means now.
  void take_signals() {
    while (const auto signal = signals_.next()) {
      const bool again = interrupted_by_ != 0;
      interrupted_by_ = *signal;
      signal_running(again ? SIGKILL : *signal);
    }
  }

  void take_messages() {
    for (RunningRank& rank : ranks_) {
      bool closed = !rank.control;
      while (!closed) {
        const auto message = detail::receive(rank.control.get(), closed);
        if (!message) {
          break;
        }
        rank.record.arrived |= message->arrived;
        if (!message->arrived && !rank.record.report) {
          rank.record.failed_at = Clock::now();
          rank.record.report = message->failure;
        }
      }
      if (closed) {
        rank.control.reset();
      }
    }
  }

  void take_ends() {
    for (RunningRank& rank : ranks_) {
      if (rank.record.end) {
        continue;
      }
      rank.record.end = rank.child.poll_end();
      if (rank.record.end) {
        first_end_ = std::min(first_end_, Clock::now());
        if (!rank.record.report) {
          rank.record.failed_at = Clock::now();
        }
      }
    }
    // A rank's last words may have come between the two looks.
    take_messages();
  }

  [[nodiscard]] std::vector<detail::RankRecord> records() const {
    std::vector<detail::RankRecord> records;
    for (const RunningRank& rank : ranks_) {
      records.push_back(rank.record);
    }
    return records;
  }

  /// Once the first failure has settled, fixes the cause and asks the other ranks to end.
  void decide() {
    if (result_.first_failure || interrupted_by_ != 0) {
      return;
    }
    auto first_failure = Clock::time_point::max();
    bool only_echoes = true;
    for (const RunningRank& rank : ranks_) {
      if (rank.record.failed()) {
        first_failure = std::min(first_failure, rank.record.failed_at);
        only_echoes = only_echoes && detail::is_consequence(rank.record);
      }
    }
    const auto patience = options_.settle * (only_echoes ? kEchoPatience : 1);
    if (first_failure != Clock::time_point::max() && Clock::now() - first_failure >= patience) {
      result_ = detail::find_first_cause(records());
      signal_running(SIGTERM);
      kill_at_ = Clock::now() + options_.stop_grace;
    }
  }

  /// Ranks that do not leave in time are killed. An interrupted job may take as long as its longest rank needs, until
  /// a first rank has left: the others cannot get far without it.
  void enforce() {
    if (interrupted_by_ != 0 && first_end_ != Clock::time_point::max()) {
      kill_at_ = std::min(kill_at_, std::max(first_end_, Clock::now()) + options_.stop_grace);
    }
    if (Clock::now() >= kill_at_) {
      signal_running(SIGKILL);
    }
  }

  void decide_at_end() {
    const auto ended = records();
    if (interrupted_by_ != 0 && !result_.first_failure) {
      const std::string name = detail::signal_name(interrupted_by_);
      result_ = {.exit_code = kExitInterrupted,
                 .first_failure = JobFailure{.kind = "interrupted", .message = "interrupted by " + name, .ranks = {}}};
    } else if (!result_.first_failure &&
               std::any_of(ended.begin(), ended.end(), [](const auto& rank) { return rank.failed(); })) {
      result_ = detail::find_first_cause(ended);
    }
  }

  void signal_running(int signal) {
    for (RunningRank& rank : ranks_) {
      if (!rank.record.end) {
        rank.child.signal_session(signal);
      }
    }
  }

  void signal_all(int signal) {
    for (RunningRank& rank : ranks_) {
      rank.child.signal_session(signal);
    }
  }

  const JobOptions& options_;
  detail::SignalWatch signals_;
  std::vector<RunningRank> ranks_;
  JobResult result_;
  int interrupted_by_ = 0;
  Clock::time_point first_end_ = Clock::time_point::max();
  Clock::time_point kill_at_ = Clock::time_point::max();
};

}  // namespace

JobResult run_local_job(const std::vector<std::string>& command, const JobOptions& options) {
  check<ConfigError>(options.num_ranks >= 1 && options.num_ranks <= kMaxLocalRanks,
                     "starting ranks: --nproc {} is out of range (allowed: 1 to {})", options.num_ranks,
                     kMaxLocalRanks);
  check<ConfigError>(!command.empty(), "starting ranks: no program given; name one after --");
  JobOptions resolved = options;
  if (resolved.program.empty()) {
    resolved.program = detail::find_program(command.front(), process_environment()("PATH").value_or("/usr/bin:/bin"));
  }
  if (!resolved.master_port) {
    resolved.master_port = detail::find_free_port();
  }
  return LocalJob(command, resolved).run();
}

}  // namespace tessera::launcher
