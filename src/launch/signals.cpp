// SPDX-License-Identifier: Apache-2.0
// SIGINT and SIGTERM as something to poll while a job runs.
#include "launch/signals.h"

#include <pthread.h>
#include <sys/signalfd.h>

namespace tessera::launcher::detail {

SignalWatch::SignalWatch() {
  sigset_t watched;
  ::sigemptyset(&watched);
  ::sigaddset(&watched, SIGINT);
  ::sigaddset(&watched, SIGTERM);
  ::pthread_sigmask(SIG_BLOCK, &watched, &previous_mask_);
  fd_ = Descriptor(::signalfd(-1, &watched, SFD_CLOEXEC | SFD_NONBLOCK));
}

SignalWatch::~SignalWatch() { ::pthread_sigmask(SIG_SETMASK, &previous_mask_, nullptr); }

std::optional<int> SignalWatch::next() {
  signalfd_siginfo info{};
  if (::read(fd_.get(), &info, sizeof info) != sizeof info) {
    return std::nullopt;
  }
  return static_cast<int>(info.ssi_signo);
}

}  // namespace tessera::launcher::detail
