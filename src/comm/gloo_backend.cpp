// SPDX-License-Identifier: Apache-2.0
// The one translation unit that sees Gloo's headers. Only pointers cross the border to the copy of Gloo inside torch.
#include "comm/gloo_backend.h"

#include <fmt/format.h>

#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include <utility>

#include "tessera/base/error.h"

namespace tessera::comm::detail {

bool has_gloo() noexcept { return true; }

c10::intrusive_ptr<c10d::Backend> make_gloo_backend(c10::intrusive_ptr<c10d::Store> store, int rank, int size,
                                                    const std::string& group, const std::string& address,
                                                    std::chrono::milliseconds timeout) {
  try {
    auto options = c10d::ProcessGroupGloo::Options::create(timeout);
    // Lazy connections can hang beyond their timeout.
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(address, /*lazyInit=*/false));
    options->threads = 1;
    return c10::make_intrusive<c10d::ProcessGroupGloo>(std::move(store), rank, size, std::move(options));
  } catch (const std::exception& error) {
    throw CommunicationError(fmt::format("group {} (gloo): rank {} of {} cannot connect over {}: {}", group, rank, size,
                                         address, error.what()));
  }
}

}  // namespace tessera::comm::detail
