// SPDX-License-Identifier: Apache-2.0
// What one rank still owes its peers: posted collectives in program order, and transfers that move while it waits.
#pragma once

#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <vector>

namespace tessera::comm::detail {

/// A posted collective. run() meets the peers and may block.
class Task {
 public:
  virtual ~Task() = default;
  Task() = default;
  Task(const Task&) = delete;
  Task& operator=(const Task&) = delete;
  virtual void run() = 0;

  bool done = false;
  std::exception_ptr error;
};

/// Point-to-point traffic of one group. progress() moves what can be moved, never blocks and never throws.
class Endpoint {
 public:
  virtual ~Endpoint() = default;
  Endpoint() = default;
  Endpoint(const Endpoint&) = delete;
  Endpoint& operator=(const Endpoint&) = delete;
  virtual void progress() = 0;
};

/// One per rank and job, shared by the groups of that rank.
///
/// All ranks run the same program, so their queues hold the collectives of any common group in the same order; each
/// drains from the front, hence the oldest unfinished collective always finds all its members.
/// Order   one thread at a time
class Engine {
 public:
  void post(std::shared_ptr<Task> task) { queue_.push_back(std::move(task)); }
  [[nodiscard]] bool has_posted() const { return !queue_.empty(); }
  /// Runs posted collectives from the front up to and including `task`.
  /// Throws  the first error met; the collective that failed keeps it. CommunicationError when `task` was discarded
  void drain_through(const Task& task);
  void drain();
  /// Runs what was posted until the first error, and forgets the rest: the rank is leaving the job.
  void finish() noexcept;
  /// Forgets what was posted: the rank is leaving the job because of an error.
  void discard() { queue_.clear(); }

  void add(Endpoint* endpoint) { endpoints_.push_back(endpoint); }
  void remove(Endpoint* endpoint) { std::erase(endpoints_, endpoint); }
  [[nodiscard]] bool has_endpoints() const { return !endpoints_.empty(); }
  /// Called again and again by every wait.
  void progress() {
    for (Endpoint* endpoint : endpoints_) endpoint->progress();
  }

 private:
  void run_front();

  std::deque<std::shared_ptr<Task>> queue_;
  std::vector<Endpoint*> endpoints_;
};

}  // namespace tessera::comm::detail
