// SPDX-License-Identifier: Apache-2.0
// Percentiles, and one reduction of the times over the ranks after they were taken.
#include "cli/bench_times.h"

#include <torch/torch.h>

#include <numeric>

#include "tessera/train/metrics.h"

namespace tessera::cli {

Spread spread_of(const std::vector<double>& times) {
  return {train::percentile(times, 10), train::percentile(times, 50), train::percentile(times, 90)};
}

comm::Communicator everyone(comm::World& world) {
  if (world.size() == 1) return {};
  std::vector<int> members(static_cast<std::size_t>(world.size()));
  std::iota(members.begin(), members.end(), 0);
  return world.group(members, "bench");
}

std::vector<double> slowest_rank(const comm::Communicator& ranks, const std::vector<double>& times,
                                 c10::Device device) {
  at::Tensor slowest = at::tensor(times, at::kDouble).to(device);
  ranks.all_reduce(slowest, comm::ReduceOp::kMax);
  slowest = slowest.cpu();
  const double* begin = slowest.const_data_ptr<double>();
  return {begin, begin + slowest.numel()};
}

}  // namespace tessera::cli
