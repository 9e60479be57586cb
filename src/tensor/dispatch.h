// SPDX-License-Identifier: Apache-2.0
// The boxed kernel behind every operator on mesh tensors, and its registration.
#pragma once

namespace tessera::tensor {

/// Registers the kernel for every operator; idempotent, thread-safe. The only global state of Tessera.
void register_operators();

}  // namespace tessera::tensor
