// SPDX-License-Identifier: Apache-2.0
// glibc's switches; other C libraries have none and need none.
#include "cli/heap.h"

#include <malloc.h>

#include <limits>

namespace tessera::cli {

void keep_freed_memory() noexcept {
  constexpr int kLargestMmapThresholdBytes = 32 << 20;  // more is refused
  mallopt(M_MMAP_THRESHOLD, kLargestMmapThresholdBytes);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
}

}  // namespace tessera::cli
