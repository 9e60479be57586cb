// SPDX-License-Identifier: Apache-2.0
// SIGINT and SIGTERM as a wish to stop at a good place.
#pragma once

#include <csignal>

namespace tessera::launcher {

/// While it lives, the first SIGINT or SIGTERM is noted and ends nothing; the second one ends the process at once.
///
/// Threads   one at a time in a process; requested() from any thread
class Interrupts {
 public:
  Interrupts();
  ~Interrupts();
  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;

  /// True once a signal has come.
  [[nodiscard]] bool requested() const noexcept;

 private:
  struct sigaction before_interrupt_ {};
  struct sigaction before_terminate_ {};
};

}  // namespace tessera::launcher
