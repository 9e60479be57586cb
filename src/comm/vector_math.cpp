// SPDX-License-Identifier: Apache-2.0
#include "comm/vector_math.h"

#include <ATen/ops/log.h>
#include <ATen/ops/ones.h>

namespace tessera::comm::detail {

// All of its functions share the one detection, whatever their dtype.
void settle_vector_math() { static_cast<void>(at::log(at::ones({1}, at::kDouble))); }

}  // namespace tessera::comm::detail
