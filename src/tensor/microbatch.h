// SPDX-License-Identifier: Apache-2.0
// What ranks count for each micro-batch by itself, since a pipeline schedule lets each rank run them in another order.
#pragma once

#include <cstdint>

#include "tensor/forward_order.h"
#include "tensor/forward_stages.h"
#include "tessera/tensor/random.h"

namespace tessera::tensor {

struct Microbatch {
  /// Names messages together with `num_events`; 0 for what belongs to no micro-batch.
  std::uint32_t number = 0;
  /// Events that need a message's name so far; alike on all ranks.
  std::uint32_t num_events = 0;
  /// Where operators of forward ran.
  ForwardStages forward;
  ForwardOrder order;
  RandomState random;
};

/// Micro-batches of a step are numbered from 1 to at most this.
inline constexpr std::uint32_t kMaxMicrobatches = (1U << 14U) - 1;

}  // namespace tessera::tensor
