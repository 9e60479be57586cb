// SPDX-License-Identifier: Apache-2.0
// What is read off a schedule without running it.
#include "tessera/pipeline/schedule.h"

#include <fmt/format.h>

#include <algorithm>

namespace tessera::pipeline {

char letter_of(ActionKind kind) noexcept { return "FBIW"[static_cast<std::size_t>(kind)]; }

std::string to_string(const Action& action) {
  return fmt::format("{}{}{}", action.stage, letter_of(action.kind), action.microbatch);
}

std::vector<int> peak_activations(const Schedule& schedule) {
  std::vector<int> peaks;
  for (const std::vector<Action>& row : schedule.actions) {
    int live = 0;
    int peak = 0;
    for (const Action& action : row) {
      if (action.kind == ActionKind::kForward) peak = std::max(peak, ++live);
      if (action.kind == ActionKind::kBackward || action.kind == ActionKind::kBackwardWeight) --live;
    }
    peaks.push_back(peak);
  }
  return peaks;
}

StageOrder stage_order(const Schedule& schedule) noexcept {
  const bool turns = schedule.num_chunks == 2 && schedule.rank_of_stage.back() == 0;
  return turns ? StageOrder::kV : StageOrder::kLoop;
}

}  // namespace tessera::pipeline
