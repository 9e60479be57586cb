// SPDX-License-Identifier: Apache-2.0
// tessera::launch: from main's arguments to this process' place in the job.
#pragma once

#include <c10/core/Device.h>

#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "tessera/comm/world.h"
#include "tessera/comm/worlds.h"
#include "tessera/launch/environment.h"

namespace tessera {

/// This process' view of the job. Copies refer to the same world.
class Ranks {
 public:
  Ranks(std::shared_ptr<comm::World> world, launcher::RankSource source) : world_(std::move(world)), source_(source) {}

  [[nodiscard]] int rank() const noexcept { return world_->rank(); }
  [[nodiscard]] int size() const noexcept { return world_->size(); }
  [[nodiscard]] const std::shared_ptr<comm::World>& world() const noexcept { return world_; }
  /// Whose environment variables said so.
  [[nodiscard]] launcher::RankSource source() const noexcept { return source_; }

 private:
  std::shared_ptr<comm::World> world_;
  launcher::RankSource source_;
};

struct LaunchOptions {
  /// Local ranks to start when no launcher started this process and the arguments have no --nproc.
  int nproc = 1;
  /// "shm", "gloo" or a name in `makers`; empty: nccl for CUDA tensors if it is there, shm when all ranks are on one
  /// machine, else gloo. `--transport` overrides it.
  std::string transport{};
  /// Deadline of every collective; none: TESSERA_TIMEOUT, else the communicators' default.
  std::optional<std::chrono::milliseconds> timeout{};
  /// How long ranks wait for each other at the start.
  std::chrono::milliseconds handshake_timeout{60000};
  /// Address of this machine for ranks on others. Empty: that of the interface GLOO_SOCKET_IFNAME; an error when both
  /// are missing and ranks are on several machines, since nothing listens beyond loopback uninvited.
  std::string listen{};
  /// Where tensors live; "cuda" without an index takes the local rank's GPU.
  c10::Device device = c10::kCPU;
  /// Threads of one rank's operators; 0: OMP_NUM_THREADS, else cores / local ranks.
  int threads_per_rank = 0;
  /// Transports from elsewhere, handed to the world.
  std::map<std::string, comm::BackendMaker> makers{};
  /// Checked to be equal on every rank, for instance {"config", digest}.
  std::map<std::string, std::string> agree_on{};
};

/// Makes this process a rank. Under torchrun, Slurm, MPI or `tessera run` it is the one that they say. With none of
/// them and `--nproc N` (or `--nproc-per-node N`) among the arguments, it starts N copies of itself and exits with the
/// job's status: the call does not return there. Otherwise it is a world of one.
///
/// Arguments  --nproc and --transport, up to a "--", are removed from argv
/// Order      first in main, before tensors are made or threads started
/// Effects    an exception that nobody catches is from now on printed as one line and ends the process with exit code 2
///            (ConfigError) or 1
/// Throws     ConfigError for contradictory variables or flags; CommunicationError naming the ranks that did not come
///            within handshake_timeout
[[nodiscard]] Ranks launch(int& argc, char** argv, const LaunchOptions& options = {});

namespace launcher {

/// The part of launch() after detection, for programs with a command line of their own: connects this process, as the
/// rank that `ranks` says, to the others.
[[nodiscard]] Ranks join_job(const RankEnvironment& ranks, const LaunchOptions& options = {});

}  // namespace launcher
}  // namespace tessera
