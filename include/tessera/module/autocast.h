// SPDX-License-Identifier: Apache-2.0
// Mixed precision: LibTorch's autocast as a scope.
#pragma once

#include <c10/core/DeviceType.h>
#include <c10/core/ScalarType.h>

namespace tessera {

/// While it lives, this thread's autocast makes a 16-bit copy of a parameter for every use. LibTorch remembers copies for the
/// whole process, and makes them under a lock: ranks that are threads would wait for each other in it, and a micro-batch
/// would find the copy of another one, which each rank runs in another order.
class NoCastCache {
 public:
  NoCastCache();
  ~NoCastCache();
  NoCastCache(const NoCastCache&) = delete;
  NoCastCache& operator=(const NoCastCache&) = delete;

 private:
  bool before_;
};

/// While it lives, operators on `device` compute in `dtype` where that is safe (matrix products, convolutions) and in
/// fp32 where it is not (norms, losses, sums), on plain and on mesh tensors alike; parameters stay fp32 and so do their
/// gradients. Guards forward and loss; backward runs outside.
///
/// Casts of parameters are not remembered (NoCastCache): a weight that is used twice is cast twice.
///
/// Threads   this thread's; nested scopes restore what was before
/// Throws    ConfigError for a dtype other than bf16 and fp16
/// Source    at::autocast, whose operator lists these are
class Autocast {
 public:
  Autocast(c10::DeviceType device, c10::ScalarType dtype);
  ~Autocast();
  Autocast(const Autocast&) = delete;
  Autocast& operator=(const Autocast&) = delete;

 private:
  c10::DeviceType device_;
  bool enabled_before_;
  c10::ScalarType dtype_before_;
  NoCastCache no_cast_cache_;
};

}  // namespace tessera
