// SPDX-License-Identifier: Apache-2.0
// Autocast as a scope.
#include "tessera/module/autocast.h"

#include <ATen/autocast_mode.h>

#include "tessera/base/error.h"

namespace tessera {

NoCastCache::NoCastCache() : before_(at::autocast::is_autocast_cache_enabled()) {
  at::autocast::set_autocast_cache_enabled(false);
}

NoCastCache::~NoCastCache() { at::autocast::set_autocast_cache_enabled(before_); }

Autocast::Autocast(c10::DeviceType device, c10::ScalarType dtype)
    : device_(device),
      enabled_before_(at::autocast::is_autocast_enabled(device)),
      dtype_before_(at::autocast::get_autocast_dtype(device)) {
  check<ConfigError>(dtype == at::kBFloat16 || dtype == at::kHalf, "Autocast: dtype {}; allowed: BFloat16, Half",
                     c10::toString(dtype));
  at::autocast::set_autocast_enabled(device, true);
  at::autocast::set_autocast_dtype(device, dtype);
}

Autocast::~Autocast() {
  at::autocast::set_autocast_dtype(device_, dtype_before_);
  at::autocast::set_autocast_enabled(device_, enabled_before_);
}

}  // namespace tessera
