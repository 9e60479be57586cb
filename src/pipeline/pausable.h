// SPDX-License-Identifier: Apache-2.0
// A function that can stop in the middle and go on later.
#pragma once

#include <c10/core/Device.h>

#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

namespace tessera::pipeline {

/// Runs a function on a thread of its own, but only while somebody is in resume(): of the two threads one waits.
/// A thread and not a coroutine of one: autograd's engine keeps its state per thread, and two backward passes that take
/// turns need two of them.
class Pausable {
 public:
  /// `body` may call `pause()` on the object; it runs with the LibTorch state of the thread that constructs, and its stream
  /// on `device`.
  Pausable(std::function<void()> body, c10::Device device);
  /// If the body has not ended, its pause() throws and it unwinds.
  ~Pausable();
  Pausable(const Pausable&) = delete;
  Pausable& operator=(const Pausable&) = delete;

  /// Lets the body run until it pauses or ends. Throws what it throws. Without effect once it has ended.
  void resume();
  /// Called by the body: waits for the next resume().
  void pause();
  [[nodiscard]] bool ended() const noexcept { return ended_; }

 private:
  /// Unwinds the body; not derived from std::exception, so that nobody takes it for an error.
  struct Cancelled {};

  void run();

  std::function<void()> body_;
  std::mutex mutex_;
  std::condition_variable turn_;
  bool running_ = false;
  bool cancelled_ = false;
  bool ended_ = false;
  std::exception_ptr error_;
  std::thread thread_;
};

}  // namespace tessera::pipeline
