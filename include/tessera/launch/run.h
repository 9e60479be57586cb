// SPDX-License-Identifier: Apache-2.0
// `tessera run`: torchrun's words for starting any program as several ranks.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tessera/launch/local_launcher.h"

namespace tessera::launcher {

/// torchrun's flags, by their names, that make sense on one machine.
struct RunOptions {
  /// --nproc, --nproc-per-node: a number, "cpu" (cores of this process), "gpu" (devices) or "auto" (gpu if any, else
  /// cpu).
  std::string nproc = "1";
  /// --nnodes: "1", "1:1". Several machines are started by torchrun, srun or mpirun.
  std::string nnodes = "1";
  /// --master-addr, --master-port: told to the program; Tessera's own ranks do not need them.
  std::optional<std::string> master_addr{};
  std::optional<int> master_port{};
  /// --standalone: accepted; one machine always is.
  bool standalone = false;
  int threads_per_rank = 1;
};

/// Number of ranks that `nproc` asks for. Throws ConfigError naming `flag`, the value and what is allowed.
[[nodiscard]] int parse_nproc(const std::string& nproc, const std::string& flag = "--nproc");

/// Runs `command` (program and arguments) as the options say and returns when the job has ended. Prints nothing.
/// Throws  ConfigError for options out of range, several machines, or a program that cannot be started.
[[nodiscard]] JobResult run_program(const RunOptions& options, const std::vector<std::string>& command);

}  // namespace tessera::launcher
