// SPDX-License-Identifier: Apache-2.0
// Times of repeated measurements: their middle and spread, and the slowest rank of each.
#pragma once

#include <memory>
#include <vector>

#include "tessera/comm/world.h"

namespace tessera::cli {

/// Tenth, fiftieth and ninetieth percentile, interpolated linearly.
struct Spread {
  double p10 = 0;
  double median = 0;
  double p90 = 0;
};

[[nodiscard]] Spread spread_of(const std::vector<double>& times);

/// All ranks of the world. Collective.
[[nodiscard]] comm::Communicator everyone(comm::World& world);

/// Element i is the largest element i of all ranks, which are on devices like `device`: a repetition takes as long as its
/// slowest rank. Collective.
[[nodiscard]] std::vector<double> slowest_rank(const comm::Communicator& ranks, const std::vector<double>& times,
                                               c10::Device device);

}  // namespace tessera::cli
