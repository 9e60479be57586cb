// SPDX-License-Identifier: Apache-2.0
// SIGINT and SIGTERM as something to poll while a job runs.
#pragma once

#include <csignal>
#include <optional>

#include "launch/descriptor.h"

namespace tessera::launcher::detail {

/// Blocks SIGINT and SIGTERM for this thread as long as it lives and hands them out through a descriptor.
class SignalWatch {
 public:
  SignalWatch();
  ~SignalWatch();
  SignalWatch(const SignalWatch&) = delete;
  SignalWatch& operator=(const SignalWatch&) = delete;

  [[nodiscard]] int fd() const noexcept { return fd_.get(); }
  /// The next signal that came, if any.
  [[nodiscard]] std::optional<int> next();

 private:
  sigset_t previous_mask_{};
  Descriptor fd_;
};

}  // namespace tessera::launcher::detail
