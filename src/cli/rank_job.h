// SPDX-License-Identifier: Apache-2.0
// Runs a command's body once per rank: as threads, as local processes, or as the rank that a launcher made this process.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cli/job_flags.h"
#include "tessera/comm/worlds.h"

namespace tessera::cli {

struct RankJob {
  int num_ranks = 1;
  std::vector<std::string> words;  ///< the command line, for starting it again
  JobFlags flags;
  train::TrainConfig config;
};

using RankBody = std::function<void(const std::shared_ptr<comm::World>&)>;

/// Makes `device` (cpu or cuda) usable in this process; returns the transports that come with it, none for the CPU.
/// Order   before the first tensor on the device
/// Throws  ConfigError as comm::load_cuda_makers does
std::map<std::string, comm::BackendMaker> load_device(const std::string& device);

/// Number of ranks that a launcher above this process gave the job; 0 if there is none.
[[nodiscard]] int launched_ranks();

/// Returns the exit code. In the process that only starts the ranks, `body` is not called; a failed job ends --json
/// with its error line.
[[nodiscard]] int run_ranks(const RankJob& job, const RankBody& body);

}  // namespace tessera::cli
