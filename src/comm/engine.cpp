// SPDX-License-Identifier: Apache-2.0
// Draining the queue of posted collectives.
#include "comm/engine.h"

#include <utility>

#include "tessera/base/error.h"

namespace tessera::comm::detail {

void Engine::run_front() {
  const std::shared_ptr<Task> task = std::move(queue_.front());
  queue_.pop_front();
  try {
    task->run();
  } catch (...) {
    task->error = std::current_exception();
  }
  task->done = true;
  if (task->error) std::rethrow_exception(task->error);
}

void Engine::drain_through(const Task& task) {
  while (!task.done && !queue_.empty()) run_front();
  if (task.error) std::rethrow_exception(task.error);
  check<CommunicationError>(task.done, "wait: the world that this collective was posted in is gone; wait earlier");
}

void Engine::drain() {
  while (!queue_.empty()) run_front();
}

void Engine::finish() noexcept {
  try {
    drain();
  } catch (...) {  // NOLINT(bugprone-empty-catch): nobody waits here, and peers have the error too
  }
  discard();
}

}  // namespace tessera::comm::detail
