// SPDX-License-Identifier: Apache-2.0
// Gloo as a transport: c10d's own engine over TCP, in builds that have its headers.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>
#include <string>

namespace tessera::comm::detail {

/// Throws  ConfigError in a build without Gloo's headers; CommunicationError when peers do not come
[[nodiscard]] c10::intrusive_ptr<c10d::Backend> make_gloo_backend(c10::intrusive_ptr<c10d::Store> store, int rank,
                                                                  int size, const std::string& group,
                                                                  const std::string& address,
                                                                  std::chrono::milliseconds timeout);

/// Whether make_gloo_backend can succeed.
[[nodiscard]] bool has_gloo() noexcept;

}  // namespace tessera::comm::detail
