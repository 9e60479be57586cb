// SPDX-License-Identifier: Apache-2.0
// How far ranks come in the forward of a micro-batch when each runs one of its stages after the other.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <vector>

#include "tensor/stage_map.h"

namespace tessera::tensor {

class ForwardOrder {
 public:
  /// A call on `stages` with an operand that lies on `lies`: true if a rank would wait on one of its stages for what
  /// another one sends after it has begun a later stage.
  [[nodiscard]] bool waits(const StageMap& map, StageSet lies, StageSet stages) const {
    for (StageSet left = stages & ~lies; left != 0; left -= lowest(left)) {
      const int receiver = rank_of(map, lowest(left));
      const int sender = map.source_for(receiver, lies);
      if (sender != receiver && reached(sender) > std::max(reached(receiver), lowest(stages))) return true;
    }
    return false;
  }
  /// The rank of the call's stage begins it, unless it is further. Of several stages, the first.
  void enter(const StageMap& map, StageSet stages) {
    reached_.resize(static_cast<std::size_t>(map.ranks()), 0);
    StageSet& reached = reached_[static_cast<std::size_t>(rank_of(map, lowest(stages)))];
    reached = std::max(reached, lowest(stages));
  }

 private:
  static int rank_of(const StageMap& map, StageSet stage) {
    return map.rank_of_stage()[static_cast<std::size_t>(std::countr_zero(stage))];
  }
  [[nodiscard]] StageSet reached(int rank) const {
    return static_cast<std::size_t>(rank) < reached_.size() ? reached_[static_cast<std::size_t>(rank)] : 0;
  }

  std::vector<StageSet> reached_;  ///< by rank: its latest stage so far, as a set
};

}  // namespace tessera::tensor
