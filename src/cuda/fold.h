// SPDX-License-Identifier: Apache-2.0
// Folding W device buffers into some, element by element: the arithmetic of every reduction on a GPU.
#pragma once

#include <c10/core/ScalarType.h>
#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>

#include "tessera/comm/communicator.h"

namespace tessera::cuda {

/// The buffers of all ranks of a group travel as arguments of one kernel.
inline constexpr int kMaxRanks = 64;

/// targets[t][i] = fold over s of sources[s][i], for every t and for i in [0, count). Memory of any device that the
/// stream's device can reach.
///
/// Order     left to right over the sources, always: repeated runs give the same bits
/// Precision float16 and bfloat16 accumulate in float32 and round once; avg divides the sum once
/// Aliasing  a target may be one of the sources; otherwise buffers do not overlap
struct Fold {
  c10::ScalarType dtype = c10::ScalarType::Float;
  comm::ReduceOp op = comm::ReduceOp::kSum;
  std::array<const std::byte*, kMaxRanks> sources{};
  int num_sources = 0;
  std::array<std::byte*, kMaxRanks> targets{};
  int num_targets = 0;
  std::size_t count = 0;
};

/// Queues the fold on `stream`, on the current device.
/// Dtypes  those of comm's reductions: float64, float32, bfloat16, float16, int64, int32, int8, uint8, and bool without
///         avg; others are refused before
/// Returns the launch's error
[[nodiscard]] cudaError_t enqueue_fold(const Fold& fold, cudaStream_t stream);

}  // namespace tessera::cuda
