// SPDX-License-Identifier: Apache-2.0
// Runs one program as several ranks on this machine and tells why the job failed, if it did.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <optional>
#include <string>
#include <vector>

namespace tessera::launcher {

struct JobOptions {
  int num_ranks = 1;
  /// Path of the executable file; empty: the first word of the command, looked up in PATH.
  std::string program{};
  /// MASTER_ADDR and MASTER_PORT for programs that meet by TCP (Tessera's own do not); no port: a free one.
  std::string master_address = "127.0.0.1";
  std::optional<int> master_port{};
  /// OMP_NUM_THREADS of a rank, unless the environment already has one.
  int threads_per_rank = 1;
  /// After the first failure, how long to wait for a better cause than "my peer is gone".
  std::chrono::milliseconds settle{300};
  /// From SIGTERM to SIGKILL.
  std::chrono::milliseconds stop_grace{3000};
};

/// The first cause of a failed job; what followed from it is left out.
struct JobFailure {
  /// The rank it happened on, -1 for the job as a whole (an interrupt).
  int rank = -1;
  pid_t pid = -1;
  /// "config", "communication" and so on as the rank said; "rank_died", "rendezvous", "interrupted" as seen from here.
  std::string kind{};
  /// One line, naming rank and pid.
  std::string message{};
  /// All ranks that said the same; `rank` among them.
  std::vector<int> ranks{};
};

struct JobResult {
  /// 0 all ranks succeeded, 2 the first cause was a ConfigError, 130 interrupted, else 1.
  int exit_code = 0;
  std::optional<JobFailure> first_failure{};
};

/// Starts `command` num_ranks times with torchrun's environment variables and returns when all ranks have ended. When
/// one fails, the others are ended: SIGTERM, then SIGKILL. SIGINT and SIGTERM are forwarded once; the second one kills.
/// Ranks die with the calling thread, so no rank outlives the launcher however it ends.
///
/// Order     from one thread at a time, best before the process has other threads: they could take the signals
/// Network   none: ranks meet through an inherited memory file
/// Throws    ConfigError when the program cannot be started or num_ranks is below 1; nothing is printed
[[nodiscard]] JobResult run_local_job(const std::vector<std::string>& command, const JobOptions& options);

}  // namespace tessera::launcher
