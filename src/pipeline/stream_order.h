// SPDX-License-Identifier: Apache-2.0
// Runs a schedule's rows side by side, each in its order, as the ranks would.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "tessera/pipeline/schedule.h"

namespace tessera::pipeline {

/// The action of another stage whose result `action` waits for: F of the stage before, B or I of the stage after. Named
/// as forward or backward: whether the backward there is whole or split, the consumer waits for its input gradient.
struct Need {
  bool backward = false;
  int stage = 0;
  int microbatch = 0;
};
[[nodiscard]] std::optional<Need> need_of(const Action& action, int num_stages);

/// Calls `run(rank, position)` for each action once everything that it needs of other stages has run, and returns how
/// far each rank came: less than its row where it waits forever. What an action needs of its own stage is its row's
/// order and is not looked at.
///
/// Cost      O(actions): a rank runs until it has to wait, and is woken by the action that it waits for
std::vector<std::size_t> run_in_stream_order(const Schedule& schedule,
                                             const std::function<void(int rank, std::size_t position)>& run);

}  // namespace tessera::pipeline
