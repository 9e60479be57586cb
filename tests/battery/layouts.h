// SPDX-License-Identifier: Apache-2.0
// The meshes that every row of the battery is trained on, and how its parameters lie there.
#pragma once

#include <string>
#include <vector>

#include "battery/trained.h"

namespace tessera::battery {

struct Layout {
  std::string name;
  std::string axes;
  PlanOf plan;
  StepOptions options = {};
};

/// Those that fit the row: a ready plan and pipeline stages if it has them.
[[nodiscard]] std::vector<Layout> layouts_of(const Row& row);

}  // namespace tessera::battery
