// SPDX-License-Identifier: Apache-2.0
// Detection of the rank from launchers' variables.
#include "tessera/launch/environment.h"

#include <fmt/ranges.h>

#include <climits>
#include <cstdlib>
#include <initializer_list>
#include <string_view>
#include <vector>

#include "launch/host_list.h"
#include "launch/numbers.h"
#include "tessera/base/error.h"

namespace tessera::launcher {
namespace {

constexpr int kMaxRanks = 1 << 20;
constexpr int kDefaultPort = 29500;
constexpr int kFirstDerivedPort = 20000;
constexpr int kNumDerivedPorts = 9000;

/// Reads variables and collects what is wrong with them, so that one message can name every problem.
class VariableReader {
 public:
  explicit VariableReader(const EnvironmentLookup& lookup) : lookup_(lookup) {}

  /// A variable set to nothing counts as not set, as launchers' scripts leave them.
  [[nodiscard]] std::optional<std::string> text(const char* name) const {
    auto value = lookup_(name);
    return value && !value->empty() ? value : std::nullopt;
  }

  [[nodiscard]] bool has(const char* name) const { return text(name).has_value(); }

  /// The number in the first of `names` that is set, if it lies in [low, high].
  std::optional<int> optional_integer(std::initializer_list<const char*> names, int low, int high) {
    for (const char* name : names) {
      const auto value = text(name);
      if (!value) {
        continue;
      }
      const auto number = detail::parse_integer(*value);
      if (!number || *number < low || *number > high) {
        problem(fmt::format("{}={} {} (allowed: {})", name, *value,
                            number ? "is out of range" : "is not a whole number",
                            high == INT_MAX ? fmt::format("{} or more", low) : fmt::format("{} to {}", low, high)));
        return std::nullopt;
      }
      return number;
    }
    return std::nullopt;
  }

  /// The same for a variable that must be there because `because` is.
  int integer(std::initializer_list<const char*> names, int low, int high, const char* because) {
    const auto problems_before = problems_.size();
    const auto number = optional_integer(names, low, high);
    if (!number && problems_.size() == problems_before) {
      problem(fmt::format("{} is not set although {} is (allowed: {} to {})", *names.begin(), because, low, high));
    }
    return number.value_or(low);
  }

  void problem(std::string text) { problems_.push_back(std::move(text)); }

  void throw_if_any(const char* launcher) const {
    if (!problems_.empty()) {
      throw ConfigError(
          fmt::format("detecting ranks ({}): {}; start the program with `tessera run`, torchrun, srun or "
                      "mpirun, or unset these variables for a world of one",
                      launcher, fmt::join(problems_, "; ")));
    }
  }

 private:
  const EnvironmentLookup& lookup_;
  std::vector<std::string> problems_;
};

void check_numbers(VariableReader& reader, const RankEnvironment& ranks, const char* rank_name, const char* size_name,
                   const char* local_rank_name, const char* local_size_name) {
  if (ranks.rank >= ranks.world_size) {
    reader.problem(fmt::format("{}={} does not fit {}={} (allowed: 0 to {})", rank_name, ranks.rank, size_name,
                               ranks.world_size, ranks.world_size - 1));
    return;  // the local numbers may only repeat the mistake
  }
  if (ranks.local_world_size > ranks.world_size) {
    reader.problem(
        fmt::format("{}={} exceeds {}={}", local_size_name, ranks.local_world_size, size_name, ranks.world_size));
  }
  if (ranks.local_rank >= ranks.local_world_size) {
    reader.problem(fmt::format("{}={} does not fit {}={} (allowed: 0 to {})", local_rank_name, ranks.local_rank,
                               local_size_name, ranks.local_world_size, ranks.local_world_size - 1));
  } else if (ranks.on_one_machine() && ranks.local_rank != ranks.rank && ranks.source != RankSource::kSlurm) {
    // Slurm may number the tasks of one machine in another order; the others do not.
    reader.problem(fmt::format("{}={} contradicts {}={} although all ranks are local", local_rank_name,
                               ranks.local_rank, rank_name, ranks.rank));
  }
}

bool is_loopback_name(std::string_view host) { return host == "127.0.0.1" || host == "localhost" || host == "::1"; }

int derived_port(VariableReader& reader, std::string_view job) {
  if (const auto named = reader.optional_integer({"MASTER_PORT"}, 1, 65535)) {
    return *named;
  }
  if (job.empty()) {
    return kDefaultPort;
  }
  unsigned hash = 2166136261U;
  for (const char letter : job) {
    hash = (hash ^ static_cast<unsigned char>(letter)) * 16777619U;
  }
  return kFirstDerivedPort + static_cast<int>(hash % kNumDerivedPorts);
}

/// RANK, WORLD_SIZE, ...: torchrun, our own launcher, and launchers that imitate torchrun.
RankEnvironment read_torchrun(VariableReader& reader) {
  RankEnvironment ranks;
  ranks.source = RankSource::kTorchrun;
  const char* because = reader.has("RANK") ? "RANK" : reader.has("WORLD_SIZE") ? "WORLD_SIZE" : "LOCAL_RANK";
  ranks.world_size = reader.integer({"WORLD_SIZE"}, 1, kMaxRanks, because);
  ranks.rank = reader.integer({"RANK"}, 0, INT_MAX, because);
  const auto address = reader.text("MASTER_ADDR");
  const bool elsewhere = ranks.world_size > 1 && address && !is_loopback_name(*address);
  if (reader.has("LOCAL_RANK") || reader.has("LOCAL_WORLD_SIZE") || elsewhere) {
    ranks.local_rank = reader.integer({"LOCAL_RANK"}, 0, INT_MAX, because);
    ranks.local_world_size = reader.integer({"LOCAL_WORLD_SIZE"}, 1, kMaxRanks, because);
  } else {
    ranks.local_rank = ranks.rank;
    ranks.local_world_size = ranks.world_size;
  }
  if (reader.has("RANK") && reader.has("WORLD_SIZE")) {
    check_numbers(reader, ranks, "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE");
  }
  ranks.store_fd = reader.optional_integer({"TESSERA_STORE_FD"}, 0, INT_MAX);
  if (ranks.store_fd && !reader.has("TORCHELASTIC_RUN_ID")) {
    ranks.source = RankSource::kTessera;
  } else {
    ranks.store_fd.reset();  // a torchrun inside `tessera run` meets in its own store
  }
  ranks.restart_count = reader.optional_integer({"TORCHELASTIC_RESTART_COUNT"}, 0, INT_MAX).value_or(0);
  ranks.launcher_hosts_store = reader.text("TORCHELASTIC_USE_AGENT_STORE") == "True";
  if (ranks.world_size > 1 && ranks.source == RankSource::kTorchrun) {
    if (!address) {
      reader.problem(fmt::format("MASTER_ADDR is not set although {} is (allowed: the host of rank 0)", because));
    }
    ranks.master_port = reader.integer({"MASTER_PORT"}, 1, 65535, because);
    ranks.master_address = address.value_or("");
  }
  return ranks;
}

/// Without MASTER_ADDR, MPI launchers tell nobody where rank 0 is, unless everyone is here.
void set_mpi_master(VariableReader& reader, RankEnvironment& ranks, std::string_view job) {
  if (ranks.world_size == 1) {
    return;
  }
  ranks.master_address = reader.text("MASTER_ADDR").value_or(ranks.on_one_machine() ? "127.0.0.1" : "");
  ranks.master_port = derived_port(reader, job);
  if (ranks.master_address.empty()) {
    reader.problem(
        "MASTER_ADDR is not set although ranks are on several machines (allowed: the host of rank 0, "
        "for instance mpirun -x MASTER_ADDR=HOST)");
  }
}

RankEnvironment read_open_mpi(VariableReader& reader) {
  RankEnvironment ranks;
  ranks.source = RankSource::kOpenMpi;
  const char* because = "OMPI_COMM_WORLD_RANK";
  ranks.rank = reader.integer({because}, 0, INT_MAX, "OMPI_COMM_WORLD_SIZE");
  ranks.world_size = reader.integer({"OMPI_COMM_WORLD_SIZE"}, 1, kMaxRanks, because);
  ranks.local_rank = reader.integer({"OMPI_COMM_WORLD_LOCAL_RANK"}, 0, INT_MAX, because);
  ranks.local_world_size = reader.integer({"OMPI_COMM_WORLD_LOCAL_SIZE"}, 1, kMaxRanks, because);
  check_numbers(reader, ranks, because, "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
                "OMPI_COMM_WORLD_LOCAL_SIZE");
  set_mpi_master(reader, ranks, reader.text("PMIX_NAMESPACE").value_or(""));
  return ranks;
}

RankEnvironment read_pmi(VariableReader& reader) {
  RankEnvironment ranks;
  ranks.source = RankSource::kPmi;
  ranks.rank = reader.integer({"PMI_RANK"}, 0, INT_MAX, "PMI_SIZE");
  ranks.world_size = reader.integer({"PMI_SIZE"}, 1, kMaxRanks, "PMI_RANK");
  if (ranks.world_size > 1) {
    ranks.local_rank = reader.integer({"MPI_LOCALRANKID", "SLURM_LOCALID"}, 0, INT_MAX, "PMI_RANK");
    // Where ranks meet on loopback, all of them must be here.
    ranks.local_world_size = is_loopback_name(reader.text("MASTER_ADDR").value_or("127.0.0.1"))
                                 ? reader.optional_integer({"MPI_LOCALNRANKS"}, 1, kMaxRanks).value_or(ranks.world_size)
                                 : reader.integer({"MPI_LOCALNRANKS"}, 1, kMaxRanks, "PMI_RANK");
  }
  check_numbers(reader, ranks, "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS");
  set_mpi_master(reader, ranks, reader.text("HYDI_CONTROL_FD") ? "" : reader.text("SLURM_JOB_ID").value_or(""));
  return ranks;
}

int slurm_local_world_size(VariableReader& reader, int world_size, int num_nodes) {
  if (num_nodes == 1) {
    return world_size;
  }
  const int node = reader.integer({"SLURM_NODEID"}, 0, num_nodes - 1, "SLURM_PROCID");
  for (const char* name : {"SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE"}) {
    const auto list = reader.text(name);
    if (!list) {
      continue;
    }
    const bool per_node = std::string_view(name) == "SLURM_NTASKS_PER_NODE";
    const auto tasks = per_node ? detail::parse_integer(*list) : detail::tasks_on_node(*list, node);
    if (!tasks || *tasks < 1) {
      reader.problem(fmt::format("{}={} does not say how many tasks node {} has (allowed: a list such as 4(x2),3)",
                                 name, *list, node));
    }
    return tasks.value_or(1);
  }
  reader.problem(
      "SLURM_TASKS_PER_NODE is not set although the job has several nodes (allowed: a list such as 4(x2),3)");
  return 1;
}

RankEnvironment read_slurm(VariableReader& reader) {
  RankEnvironment ranks;
  ranks.source = RankSource::kSlurm;
  const char* because = "SLURM_PROCID";
  ranks.rank = reader.integer({because}, 0, INT_MAX, because);
  ranks.world_size = reader.integer({"SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"}, 1, kMaxRanks, because);
  const int num_nodes =
      reader.optional_integer({"SLURM_STEP_NUM_NODES", "SLURM_JOB_NUM_NODES", "SLURM_NNODES"}, 1, kMaxRanks)
          .value_or(1);
  if (ranks.world_size > 1) {
    ranks.local_rank = reader.integer({"SLURM_LOCALID"}, 0, INT_MAX, because);
    ranks.local_world_size = slurm_local_world_size(reader, ranks.world_size, num_nodes);
  }
  check_numbers(reader, ranks, because, "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_TASKS_PER_NODE");
  if (ranks.world_size == 1) {
    return ranks;
  }
  ranks.master_port =
      derived_port(reader, reader.text("SLURM_JOB_ID").value_or("") + "." + reader.text("SLURM_STEP_ID").value_or(""));
  if (const auto named = reader.text("MASTER_ADDR"); named || ranks.on_one_machine()) {
    ranks.master_address = named.value_or("127.0.0.1");
    return ranks;
  }
  // Not SLURM_LAUNCH_NODE_IPADDR: that is the host srun was typed on, not rank 0's.
  const auto nodes = reader.text("SLURM_STEP_NODELIST").value_or(reader.text("SLURM_JOB_NODELIST").value_or(""));
  const auto host = detail::first_host(nodes);
  if (!host) {
    reader.problem(fmt::format("SLURM_JOB_NODELIST={} has no first host (allowed: a list such as node[01-04])", nodes));
  }
  ranks.master_address = host.value_or("");
  return ranks;
}

bool inside_slurm_step(const VariableReader& reader) {
  // The batch script's own process carries SLURM_PROCID=0 too, but no step.
  return reader.has("SLURM_PROCID") &&
         (reader.has("SLURM_STEP_ID") || reader.has("SLURM_STEPID") || !reader.has("SLURM_JOB_ID"));
}

/// Same numbers, or `outer` starts one launcher per machine and `inner` is that launcher's child.
bool agree(const RankEnvironment& inner, const RankEnvironment& outer) {
  const bool same = inner.rank == outer.rank && inner.world_size == outer.world_size;
  const bool nested = outer.world_size * inner.local_world_size == inner.world_size &&
                      inner.rank / inner.local_world_size == outer.rank;
  return same || nested;
}

void check_agreement(VariableReader& reader, const std::vector<RankEnvironment>& found) {
  const RankEnvironment& inner = found.front();
  for (const RankEnvironment& outer : found) {
    // mpirun starts its daemons with srun, whose numbers leak into the ranks: only an equal world can contradict.
    const bool daemons = outer.source == RankSource::kSlurm && inner.source != RankSource::kTorchrun &&
                         inner.source != RankSource::kTessera && inner.world_size != outer.world_size;
    if (!daemons && !agree(inner, outer)) {
      reader.problem(fmt::format("{} says rank {} of {} but {} says rank {} of {}", name_of(inner.source), inner.rank,
                                 inner.world_size, name_of(outer.source), outer.rank, outer.world_size));
    }
  }
}

std::string hint_without_ranks(const VariableReader& reader) {
  const auto tasks = reader.text("SLURM_NTASKS").value_or(reader.text("SLURM_NPROCS").value_or("1"));
  if (!reader.has("SLURM_JOB_ID") || tasks == "1") {
    return {};
  }
  return fmt::format(
      "this Slurm allocation has SLURM_NTASKS={} tasks, but the program was not started by srun; "
      "use srun, or --nproc N for ranks on this machine",
      tasks);
}

}  // namespace

EnvironmentLookup process_environment() {
  return [](const char* name) -> std::optional<std::string> {
    const char* value = std::getenv(name);
    return value == nullptr ? std::nullopt : std::optional<std::string>(value);
  };
}

const char* name_of(RankSource source) noexcept {
  switch (source) {
    case RankSource::kNone:
      return "none";
    case RankSource::kTessera:
      return "tessera run";
    case RankSource::kTorchrun:
      return "torchrun";
    case RankSource::kSlurm:
      return "Slurm";
    case RankSource::kOpenMpi:
      return "Open MPI";
    case RankSource::kPmi:
      return "MPICH (PMI)";
  }
  return "none";
}

RankEnvironment detect_ranks(const EnvironmentLookup& lookup) {
  VariableReader reader(lookup);
  std::vector<RankEnvironment> found;
  const auto read = [&](RankEnvironment ranks) {
    reader.throw_if_any(name_of(ranks.source));
    found.push_back(std::move(ranks));
  };
  if (reader.has("RANK") || reader.has("WORLD_SIZE") || reader.has("LOCAL_RANK")) {
    read(read_torchrun(reader));
  }
  // An elastic launcher numbers ranks in its own order, so nothing outside of it can contradict it.
  if (found.empty() || !reader.has("TORCHELASTIC_RUN_ID")) {
    if (reader.has("OMPI_COMM_WORLD_RANK") || reader.has("OMPI_COMM_WORLD_SIZE")) {
      read(read_open_mpi(reader));
    }
    if (reader.has("PMI_RANK") || reader.has("PMI_SIZE")) {
      read(read_pmi(reader));
    }
    if (inside_slurm_step(reader)) {
      read(read_slurm(reader));
    }
  }
  RankEnvironment ranks;
  if (!found.empty()) {
    check_agreement(reader, found);
    reader.throw_if_any("two launchers");
    ranks = found.front();
  } else {
    ranks.hint = hint_without_ranks(reader);
  }
  ranks.control_fd = reader.optional_integer({"TESSERA_CONTROL_FD"}, 0, INT_MAX);
  reader.throw_if_any(name_of(ranks.source));
  return ranks;
}

Switches read_switches(const EnvironmentLookup& lookup) {
  Switches switches;
  const std::string strict = lookup("TESSERA_STRICT").value_or("0");
  check<ConfigError>(strict == "0" || strict == "1" || strict.empty(),
                     "TESSERA_STRICT={} is not a switch (allowed: 0 or 1)", strict);
  switches.strict = strict == "1";
  switches.color = lookup("NO_COLOR").value_or("").empty();
  if (const auto text = lookup("TESSERA_TIMEOUT"); text && !text->empty()) {
    char* end = nullptr;
    const double seconds = std::strtod(text->c_str(), &end);
    check<ConfigError>(*end == '\0' && seconds > 0 && seconds <= 1e6,
                       "TESSERA_TIMEOUT={} is not a time-out (allowed: seconds, above 0 and up to 1000000)", *text);
    switches.timeout = std::chrono::milliseconds(static_cast<std::int64_t>(seconds * 1000));
  }
  return switches;
}

}  // namespace tessera::launcher
