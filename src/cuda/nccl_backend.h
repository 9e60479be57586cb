// SPDX-License-Identifier: Apache-2.0
// NCCL as a transport: c10d's own engine, for ranks that are processes with a GPU each.
#pragma once

#include "tessera/comm/worlds.h"

namespace tessera::cuda {

/// For WorldOptions::makers. Connects at once, so that a missing peer is missed here.
/// Throws  CommunicationError when peers do not come or two ranks name one GPU
[[nodiscard]] c10::intrusive_ptr<c10d::Backend> make_nccl_backend(const comm::GroupRequest& request);

}  // namespace tessera::cuda
