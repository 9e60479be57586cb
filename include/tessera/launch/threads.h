// SPDX-License-Identifier: Apache-2.0
// Ranks as threads of this process: for tests, debuggers and several ranks on one small machine.
#pragma once

#include <functional>
#include <memory>

#include "tessera/comm/world.h"
#include "tessera/comm/worlds.h"

namespace tessera {

struct ThreadOptions {
  comm::WorldOptions world{};
  /// Threads that one rank's operators use.
  int threads_per_rank = 1;
};

/// Runs `body` once per rank, each on a thread of its own with autograd's worker threads off, and returns when all have
/// ended. An exception in one rank wakes the others from their collectives.
///
/// Order   never from inside a rank
/// Throws  the first cause: the exception of the rank that failed first, its message led by "rank R of N:". tessera
///         errors keep their type; other exceptions become Error.
void run_threads(int num_ranks, const ThreadOptions& options,
                 const std::function<void(std::shared_ptr<comm::World>)>& body);

}  // namespace tessera
