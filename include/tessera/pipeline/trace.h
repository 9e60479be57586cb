// SPDX-License-Identifier: Apache-2.0
// What a rank did when: the record of an executed schedule, for people's trace viewers and for comparison with the ideal.
#pragma once

#include <string>
#include <vector>

#include "tessera/mesh/mesh.h"
#include "tessera/pipeline/schedule.h"

namespace tessera::pipeline {

struct TracedAction {
  Action action;
  double start_ms = 0;  ///< of the machine's monotonic clock, so that ranks of one machine compare
  double end_ms = 0;
};

/// The rows of all ranks along axis pp (of the rank's own group), in order; every rank gets them.
/// Order   collective along pp
[[nodiscard]] std::vector<std::vector<TracedAction>> gather_trace(const Mesh& mesh,
                                                                  const std::vector<TracedAction>& mine);

/// The rows as a Chrome trace, which chrome://tracing and ui.perfetto.dev show: one track per rank, times from the first
/// start. Format: "Trace Event Format", complete events (ph X), microseconds.
[[nodiscard]] std::string chrome_trace(const std::vector<std::vector<TracedAction>>& rows);

}  // namespace tessera::pipeline
