// SPDX-License-Identifier: Apache-2.0
// Folding W buffers into one, element by element: the arithmetic of every reduction on the host.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstddef>

#include "tessera/comm/communicator.h"

namespace tessera::comm::detail {

/// targets[t][i] = fold over s of sources[s][i], for every t and for i in [0, count).
///
/// Order     left to right over the sources, always: ranks as threads, ranks as processes and repeated runs get the
///           same bits
/// Precision float16 and bfloat16 accumulate in float32 and round once; avg divides the sum once
/// Aliasing  a target may be one of the sources; otherwise buffers do not overlap
using FoldKernel = void (*)(const std::byte* const* sources, int num_sources, std::byte* const* targets,
                            int num_targets, std::size_t count);

/// The kernel for a dtype and reduction. bool adds and maximises as "or", multiplies and minimises as "and".
/// Throws ShapeError for a dtype that cannot be reduced (allowed: float64, float32, bfloat16, float16, int64, int32,
/// int8, uint8, bool) and for the average of bool.
[[nodiscard]] FoldKernel find_fold_kernel(c10::ScalarType dtype, ReduceOp op);

}  // namespace tessera::comm::detail
