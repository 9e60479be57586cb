// SPDX-License-Identifier: Apache-2.0
// Validation of `tessera run`'s options.
#include "tessera/launch/run.h"

#include <sched.h>

#include <algorithm>
#include <filesystem>

#include "launch/numbers.h"
#include "tessera/base/error.h"

namespace tessera::launcher {
namespace {

int num_cores() {
  cpu_set_t cores;
  return ::sched_getaffinity(0, sizeof cores, &cores) == 0 ? std::max(1, CPU_COUNT(&cores)) : 1;
}

/// Counted by device files, because asking the driver would start its threads before ranks are made.
int num_gpus() {
  std::error_code ignored;
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/dev", ignored)) {
    const std::string name = entry.path().filename();
    count += name.starts_with("nvidia") && detail::parse_integer(name.substr(6)).has_value() ? 1 : 0;
  }
  return count;
}

}  // namespace

int parse_nproc(const std::string& nproc, const std::string& flag) {
  if (nproc == "cpu" || (nproc == "auto" && num_gpus() == 0)) {
    return num_cores();
  }
  if (nproc == "gpu" || nproc == "auto") {
    const int gpus = num_gpus();
    check<ConfigError>(gpus > 0, "{} {}: this machine has no GPU; use {} cpu or a number", flag, nproc, flag);
    return gpus;
  }
  const auto number = detail::parse_integer(nproc);
  check<ConfigError>(number && *number >= 1 && *number <= 4096,
                     "{} {} is not a number of ranks (allowed: 1 to 4096, cpu, gpu or auto)", flag, nproc);
  return *number;
}

JobResult run_program(const RunOptions& options, const std::vector<std::string>& command) {
  check<ConfigError>(options.nnodes == "1" || options.nnodes == "1:1",
                     "--nnodes {}: `tessera run` starts ranks on this machine only (allowed: 1); for several machines "
                     "start the program with torchrun, srun or mpirun, whose variables it reads",
                     options.nnodes);
  check<ConfigError>(!options.master_port || (*options.master_port >= 1 && *options.master_port <= 65535),
                     "--master-port {} is not a port (allowed: 1 to 65535)", options.master_port.value_or(0));
  check<ConfigError>(options.threads_per_rank >= 1, "--threads-per-rank {} is out of range (allowed: 1 or more)",
                     options.threads_per_rank);
  return run_local_job(command, {.num_ranks = parse_nproc(options.nproc),
                                 .master_address = options.master_addr.value_or("127.0.0.1"),
                                 .master_port = options.master_port,
                                 .threads_per_rank = options.threads_per_rank});
}

}  // namespace tessera::launcher
