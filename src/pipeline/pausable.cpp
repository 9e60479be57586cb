// SPDX-License-Identifier: Apache-2.0
// A function on a thread that takes turns with another.
#include "pipeline/pausable.h"

#include <ATen/Parallel.h>
#include <ATen/ThreadLocalState.h>
#include <ATen/autocast_mode.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <optional>
#include <utility>

#include "tessera/module/autocast.h"

namespace tessera::pipeline {

namespace {

std::optional<c10::Stream> current_stream(c10::Device device) {
  if (device.is_cpu()) return std::nullopt;
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device);
}

}  // namespace

Pausable::Pausable(std::function<void()> body, c10::Device device) : body_(std::move(body)) {
  thread_ = std::thread([this, device = device.type(), state = at::ThreadLocalState(),
                         autocast_dtype = at::autocast::get_autocast_dtype(device.type()),
                         num_threads = at::get_num_threads(), stream = current_stream(device)] {
    const at::ThreadLocalStateGuard guard(state);
    // The guard's keys say whether autocast is on, but not in which dtype.
    at::autocast::set_autocast_dtype(device, autocast_dtype);
    const NoCastCache no_cast_cache;
    const c10::OptionalStreamGuard on_stream(stream);
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
