// SPDX-License-Identifier: Apache-2.0
// Stands for Gloo in builds without its headers.
#include "comm/gloo_backend.h"
#include "tessera/base/error.h"

namespace tessera::comm::detail {

bool has_gloo() noexcept { return false; }

c10::intrusive_ptr<c10d::Backend> make_gloo_backend(c10::intrusive_ptr<c10d::Store>, int, int, const std::string& group,
                                                    const std::string&, std::chrono::milliseconds) {
  throw ConfigError("group " + group +
                    ": transport gloo is not in this build; install Gloo's headers (Debian: libgloo-dev) and configure "
                    "with -DTESSERA_GLOO=ON, or use the transport shm on one machine");
}

}  // namespace tessera::comm::detail
