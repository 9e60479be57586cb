// SPDX-License-Identifier: Apache-2.0
// Which rank along axis pp computes which stage, where a rank may have several.
#pragma once

#include <cstdint>

namespace tessera {

enum class StageOrder : std::uint8_t {
  kLoop,  ///< stage k on rank k mod ranks. Source: Narayanan et al. 2021, arXiv:2104.04473, section 2.2
  kV,     ///< there and back, two stages a rank: 0 1 .. p-1 p-1 .. 1 0. Source: Qi et al. 2024, arXiv:2405.15362
};

/// The rank, 0 to ranks - 1, that computes `stage`; kV has 2 * ranks stages, kLoop a multiple of `ranks`.
[[nodiscard]] constexpr int rank_of_stage(StageOrder order, int stage, int ranks) noexcept {
  return order == StageOrder::kV && stage >= ranks ? 2 * ranks - 1 - stage : stage % ranks;
}

}  // namespace tessera
