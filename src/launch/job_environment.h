// SPDX-License-Identifier: Apache-2.0
// The environment that a local rank starts with.
#pragma once

#include <string>
#include <vector>

namespace tessera::launcher::detail {

/// What every rank of a local job is told.
struct JobVariables {
  int num_ranks = 1;
  std::string master_address;
  int master_port = 0;
  int threads_per_rank = 1;
  int store_fd = -1;
};

/// `inherited` with torchrun's variables for `rank`, ours for the rendezvous file and the control channel, and without
/// those by which an outer launcher named this process.
[[nodiscard]] std::vector<std::string> make_rank_environment(const std::vector<std::string>& inherited,
                                                             const JobVariables& job, int rank, int control_fd);

/// This process' environment as NAME=VALUE.
[[nodiscard]] std::vector<std::string> current_environment();

}  // namespace tessera::launcher::detail
