// SPDX-License-Identifier: Apache-2.0
// Autocast as a scope.
#include "tessera/module/autocast.h"

#include <ATen/autocast_mode.h>

#include "tessera/base/error.h"

namespace tessera {

Autocast::Autocast(c10::DeviceType device, c10::ScalarType dtype)
    : device_(device),
      enabled_before_(at::autocast::is_autocast_enabled(device)),
      dtype_before_(at::autocast::get_autocast_dtype(device)),
      cache_before_(at::autocast::is_autocast_cache_enabled()) {
  check<ConfigError>(dtype == at::kBFloat16 || dtype == at::kHalf, "Autocast: dtype {}; allowed: BFloat16, Half",
                     c10::toString(dtype));
  at::autocast::set_autocast_enabled(device, true);
  at::autocast::set_autocast_dtype(device, dtype);
  at::autocast::set_autocast_cache_enabled(false);
}

Autocast::~Autocast() {
  at::autocast::set_autocast_cache_enabled(cache_before_);
  at::autocast::set_autocast_dtype(device_, dtype_before_);
  at::autocast::set_autocast_enabled(device_, enabled_before_);
}

}  // namespace tessera
