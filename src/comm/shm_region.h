// SPDX-License-Identifier: Apache-2.0
// A region that the processes of one machine share without any name in the file system.
#pragma once

#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>
#include <functional>
#include <string>

#include "comm/region.h"

namespace tessera::comm::detail {

struct ShmRegion {
  Region region;
  /// False once the process of a rank has ended.
  std::function<bool(int)> is_alive;
};

/// Rank 0 makes anonymous memory and says through `store` where it is; the others open it. Returns when all have it:
/// from then on it lives exactly as long as they do.
/// Throws  CommunicationError when a rank does not come within `timeout`, or runs on another machine or in another
///         container
[[nodiscard]] ShmRegion make_shm_region(c10d::Store& store, int rank, int size, const std::string& group,
                                        std::chrono::milliseconds timeout);

}  // namespace tessera::comm::detail
