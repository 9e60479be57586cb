// SPDX-License-Identifier: Apache-2.0
// A function on a thread that takes turns with another.
#include "pipeline/pausable.h"

#include <ATen/Parallel.h>
#include <ATen/ThreadLocalState.h>

#include <utility>

namespace tessera::pipeline {

Pausable::Pausable(std::function<void()> body) : body_(std::move(body)) {
  thread_ = std::thread([this, state = at::ThreadLocalState(), num_threads = at::get_num_threads()] {
    const at::ThreadLocalStateGuard guard(state);
    // OpenMP keeps the number per thread.
    at::set_num_threads(num_threads);
    run();
  });
}

Pausable::~Pausable() {
  {
    const std::lock_guard lock(mutex_);
    cancelled_ = !ended_;
    running_ = true;
  }
  turn_.notify_all();
  thread_.join();
}

void Pausable::run() {
  std::unique_lock lock(mutex_);
  turn_.wait(lock, [this] { return running_; });
  lock.unlock();
  try {
    if (!cancelled_) body_();
  } catch (const Cancelled&) {  // NOLINT(bugprone-empty-catch): whoever cancels does not want to know
  } catch (...) {
    error_ = std::current_exception();
  }
  body_ = nullptr;  // what it holds goes before resume() returns
  lock.lock();
  ended_ = true;
  running_ = false;
  lock.unlock();
  turn_.notify_all();
}

void Pausable::resume() {
  std::unique_lock lock(mutex_);
  if (ended_) return;
  running_ = true;
  turn_.notify_all();
  turn_.wait(lock, [this] { return !running_; });
  if (error_ != nullptr) std::rethrow_exception(std::exchange(error_, nullptr));
}

void Pausable::pause() {
  std::unique_lock lock(mutex_);
  running_ = false;
  turn_.notify_all();
  turn_.wait(lock, [this] { return running_; });
  if (cancelled_) throw Cancelled();
}

}  // namespace tessera::pipeline
