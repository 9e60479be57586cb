// SPDX-License-Identifier: Apache-2.0
// The table of what does not hold yet.
#include "battery/known_refusals.h"

namespace tessera::battery {

const std::vector<KnownRefusal>& known_refusals() {
  static const std::vector<KnownRefusal> kTable{};
  return kTable;
}

}  // namespace tessera::battery
