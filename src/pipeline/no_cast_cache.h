// SPDX-License-Identifier: Apache-2.0
// Autocast without its memory of casts.
#pragma once

#include <ATen/autocast_mode.h>

namespace tessera::pipeline {

/// Autocast remembers 16-bit copies of parameters for the whole process, and makes them under a lock. A micro-batch would
/// find the copy of another one, which each rank runs in another order, or wait for the lock of one that waits for its
/// turn. In this thread, while it lives, every use makes its own copy.
class NoCastCache {
 public:
  NoCastCache() : before_(at::autocast::is_autocast_cache_enabled()) { at::autocast::set_autocast_cache_enabled(false); }
  ~NoCastCache() { at::autocast::set_autocast_cache_enabled(before_); }
  NoCastCache(const NoCastCache&) = delete;
  NoCastCache& operator=(const NoCastCache&) = delete;

 private:
  bool before_;
};

}  // namespace tessera::pipeline
