// SPDX-License-Identifier: Apache-2.0
// Which rank this process is, as its launcher told it, and the few switches read from the environment.
#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <string>

namespace tessera::launcher {

/// Value of a variable, or nothing when it is not set. Tests pass a table; programs pass process_environment().
using EnvironmentLookup = std::function<std::optional<std::string>(const char* name)>;

/// The real environment. The only place in Tessera that reads it.
[[nodiscard]] EnvironmentLookup process_environment();

/// Who started this process as one rank of a job.
enum class RankSource {
  kNone,      ///< nobody: a world of one, unless local ranks are asked for
  kTessera,   ///< `tessera run` or `--nproc`: RANK and so on, and an inherited rendezvous file
  kTorchrun,  ///< RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT
  kSlurm,     ///< SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID
  kOpenMpi,   ///< OMPI_COMM_WORLD_{RANK,SIZE,LOCAL_RANK,LOCAL_SIZE}
  kPmi,       ///< MPICH and Intel MPI: PMI_RANK, PMI_SIZE, MPI_LOCALRANKID
};

/// "none", "tessera run", "torchrun", "Slurm", "Open MPI", "MPICH (PMI)", for messages and reports.
[[nodiscard]] const char* name_of(RankSource source) noexcept;

struct RankEnvironment {
  RankSource source = RankSource::kNone;
  int rank = 0;
  int world_size = 1;
  int local_rank = 0;
  int local_world_size = 1;
  /// Where ranks meet by TCP; empty for a world of one.
  std::string master_address;
  int master_port = 0;
  /// The launcher (torchrun's agent) hosts the store; otherwise rank 0 does.
  bool launcher_hosts_store = false;
  /// Attempt of an elastic job, so that the keys of two attempts do not mix.
  int restart_count = 0;
  /// Descriptors inherited from our own launcher: the rendezvous file and the channel for failures.
  std::optional<int> store_fd;
  std::optional<int> control_fd;
  /// Why a world of one would be wrong although no rank was found (a Slurm allocation outside of srun); else empty.
  std::string hint;

  [[nodiscard]] bool on_one_machine() const noexcept { return local_world_size == world_size; }
};

/// Reads the rank from the innermost launcher's variables: our own and torchrun's, then Open MPI, MPICH, Slurm.
/// Throws  ConfigError naming every variable that is missing, malformed or out of range with its value and what is
///         allowed, and when two launchers contradict each other.
[[nodiscard]] RankEnvironment detect_ranks(const EnvironmentLookup& lookup);

/// Run-time switches. Everything else is configured through options and files.
struct Switches {
  /// TESSERA_STRICT=1: an operator without a sharding rule is an error instead of a gather.
  bool strict = false;
  /// False when NO_COLOR is set to anything but nothing.
  bool color = true;
  /// TESSERA_TIMEOUT=SECONDS: deadline of collectives, when the program does not set one.
  std::optional<std::chrono::milliseconds> timeout;
};

/// Throws  ConfigError for TESSERA_STRICT other than 0 or 1 and a TESSERA_TIMEOUT that is not a positive number.
[[nodiscard]] Switches read_switches(const EnvironmentLookup& lookup);

}  // namespace tessera::launcher
