// SPDX-License-Identifier: Apache-2.0
// All ranks of a job as one of them sees it: who am I, and how are groups of ranks made.
#pragma once

#include <c10/core/Device.h>

#include <string>
#include <vector>

#include "tessera/comm/communicator.h"

namespace tessera::comm {

/// One rank's view of the job. Made by `launch`; meshes are made from it.
/// Lifetime  shared; groups keep what they need alive.
class World {
 public:
  virtual ~World() = default;
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  [[nodiscard]] int rank() const noexcept { return rank_; }
  [[nodiscard]] int size() const noexcept { return size_; }
  /// Index among the ranks of this machine; chooses the GPU.
  [[nodiscard]] int local_rank() const noexcept { return local_rank_; }
  /// Where this rank's tensors live.
  [[nodiscard]] c10::Device device() const noexcept { return device_; }
  /// "single", "thread", "shm", "gloo", "nccl", for messages and reports.
  [[nodiscard]] virtual std::string transport() const = 0;

  /// A group of the ranks in `members` (ascending global ranks, this rank among them).
  /// Order   every member calls it with the same members and name; calls that repeat both are told apart by their
  /// order. Throws  CommunicationError when a member does not come within the job's deadline.
  [[nodiscard]] virtual Communicator group(const std::vector<int>& members, const std::string& name) = 0;

  /// This rank failed for `reason`: wakes the peers that wait for it in any common group; they throw a
  /// CommunicationError with that reason. Any thread; at most once is enough.
  virtual void abort(const std::string& reason) noexcept { static_cast<void>(reason); }

  /// This rank has nothing more to do: it takes part in what it posted and nobody waited for, lest peers wait for it.
  /// Errors are theirs to report. `run_threads` calls it after the body; worlds of processes do when they end without
  /// exception.
  /// Order  on the rank's thread
  virtual void leave() noexcept {}

  /// 0, 1, 2 ...: the same on every rank as long as all ask in the same order. Tells meshes of one world apart.
  [[nodiscard]] int next_number() noexcept { return next_number_++; }

 protected:
  World(int rank, int size, int local_rank, c10::Device device)
      : rank_(rank), size_(size), local_rank_(local_rank), device_(device) {}

 private:
  int next_number_ = 0;
  int rank_;
  int size_;
  int local_rank_;
  c10::Device device_;
};

}  // namespace tessera::comm
