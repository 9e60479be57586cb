// SPDX-License-Identifier: Apache-2.0
// The environment that a local rank starts with.
#include "launch/job_environment.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <string_view>

namespace tessera::launcher::detail {
namespace {

/// Variables that say "you are rank r" in an outer launcher's words, exact or as a prefix.
constexpr std::array<std::string_view, 11> kOuterIdentity = {
    "GROUP_RANK=", "ROLE_RANK=", "ROLE_WORLD_SIZE=", "GROUP_WORLD_SIZE=", "TORCHELASTIC_", "OMPI_COMM_WORLD_",
    "PMI_RANK=",   "PMI_SIZE=",  "MPI_LOCALNRANKS=", "MPI_LOCALRANKID=",  "SLURM_PROCID="};

std::string_view name_of_variable(std::string_view variable) { return variable.substr(0, variable.find('=')); }

}  // namespace

std::vector<std::string> make_rank_environment(const std::vector<std::string>& inherited, const JobVariables& job,
                                               int rank, int control_fd) {
  std::vector<std::string> variables = {
      fmt::format("RANK={}", rank),
      fmt::format("WORLD_SIZE={}", job.num_ranks),
      fmt::format("LOCAL_RANK={}", rank),
      fmt::format("LOCAL_WORLD_SIZE={}", job.num_ranks),
      "GROUP_RANK=0",
      fmt::format("MASTER_ADDR={}", job.master_address),
      fmt::format("MASTER_PORT={}", job.master_port),
      fmt::format("TESSERA_STORE_FD={}", job.store_fd),
      fmt::format("TESSERA_CONTROL_FD={}", control_fd),
  };
  const bool has_threads = std::any_of(inherited.begin(), inherited.end(), [](const std::string& variable) {
    return variable.starts_with("OMP_NUM_THREADS=");
  });
  if (!has_threads) {
    variables.push_back(fmt::format("OMP_NUM_THREADS={}", job.threads_per_rank));
  }
  const auto ours_end = static_cast<std::ptrdiff_t>(variables.size());
  for (const std::string& variable : inherited) {
    const bool replaced = std::any_of(variables.begin(), variables.begin() + ours_end, [&](const std::string& ours) {
      return name_of_variable(ours) == name_of_variable(variable);
    });
    const bool outer = std::any_of(kOuterIdentity.begin(), kOuterIdentity.end(),
                                   [&](std::string_view prefix) { return variable.starts_with(prefix); });
    if (!replaced && !outer) {
      variables.push_back(variable);
    }
  }
  return variables;
}

std::vector<std::string> current_environment() {
  std::vector<std::string> variables;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    variables.emplace_back(*variable);
  }
  return variables;
}

}  // namespace tessera::launcher::detail
