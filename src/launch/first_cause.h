// SPDX-License-Identifier: Apache-2.0
// Which of many failures came first: deaths and own mistakes before complaints about peers.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <optional>
#include <vector>

#include "launch/child_process.h"
#include "tessera/launch/failure.h"
#include "tessera/launch/local_launcher.h"

namespace tessera::launcher::detail {

/// What the launcher knows about one rank.
struct RankRecord {
  pid_t pid = -1;
  /// It reached the rendezvous.
  bool arrived = false;
  std::optional<FailureReport> report;
  std::optional<ProcessEnd> end;
  /// When `report` or a failing `end` was first seen.
  std::chrono::steady_clock::time_point failed_at;

  [[nodiscard]] bool failed() const noexcept { return report || (end && !end->success()); }
};

/// True when the failure may only be the echo of another rank's: the job should wait a little for the real cause.
[[nodiscard]] bool is_consequence(const RankRecord& rank);

/// The first cause among the ranks that failed, with its exit code.
/// Assumes  at least one failed, and none was yet ended by the launcher.
[[nodiscard]] JobResult find_first_cause(const std::vector<RankRecord>& ranks);

}  // namespace tessera::launcher::detail
