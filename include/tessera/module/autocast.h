// SPDX-License-Identifier: Apache-2.0
// Mixed precision: LibTorch's autocast as a scope.
#pragma once

#include <c10/core/DeviceType.h>
#include <c10/core/ScalarType.h>

namespace tessera {

/// While it lives, operators on `device` compute in `dtype` where that is safe (matrix products, convolutions) and in
/// fp32 where it is not (norms, losses, sums), on plain and on mesh tensors alike; parameters stay fp32 and so do their
/// gradients. Guards forward and loss; backward runs outside.
///
/// Casts of parameters are not remembered: LibTorch keeps them for the whole process, under a lock that it holds while it
/// casts, and ranks that are threads would wait for each other there. A weight that is used twice is cast twice.
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
  bool cache_before_;
};

}  // namespace tessera
