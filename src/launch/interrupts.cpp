// SPDX-License-Identifier: Apache-2.0
// Signal handlers that note a signal.
#include "tessera/launch/interrupts.h"

#include <atomic>

namespace tessera::launcher {
namespace {

// What a handler may write to, of any thread, is an atomic that outlives it.
std::atomic<bool> interrupted{false};
static_assert(std::atomic<bool>::is_always_lock_free);

void note(int /*signal*/) {
  interrupted = true;
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
}

}  // namespace

Interrupts::Interrupts() {
  interrupted = false;
  struct sigaction action {};
  action.sa_handler = note;
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGINT, &action, &before_interrupt_);
  ::sigaction(SIGTERM, &action, &before_terminate_);
}

Interrupts::~Interrupts() {
  ::sigaction(SIGINT, &before_interrupt_, nullptr);
  ::sigaction(SIGTERM, &before_terminate_, nullptr);
}

bool Interrupts::requested() const noexcept { return interrupted; }

}  // namespace tessera::launcher
