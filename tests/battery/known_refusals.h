// SPDX-License-Identifier: Apache-2.0
// What does not hold yet, in one table. A row that holds again must leave it.
#pragma once

#include <string>
#include <vector>

namespace tessera::battery {

struct KnownRefusal {
  std::string model;
  std::string layout;
  std::string reason;
};

[[nodiscard]] const std::vector<KnownRefusal>& known_refusals();

}  // namespace tessera::battery
