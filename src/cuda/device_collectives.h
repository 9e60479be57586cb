// SPDX-License-Identifier: Apache-2.0
// What one rank queues on its stream for a collective among threads: copies and folds that read peers' memory.
#pragma once

#include <cuda_runtime_api.h>

#include <string>
#include <vector>

#include "comm/collectives.h"

namespace tessera::cuda {

/// One collective as all its members see it.
struct Round {
  /// In rank order. All have one fingerprint; those of other ranks are read until the members meet again.
  std::vector<const comm::detail::Operation*> operations;
  int rank = 0;
  std::string group;

  [[nodiscard]] int size() const { return static_cast<int>(operations.size()); }
  [[nodiscard]] const comm::detail::Operation& of(int member) const {
    return *operations[static_cast<std::size_t>(member)];
  }
  [[nodiscard]] const comm::detail::Operation& mine() const { return of(rank); }
};

/// Throws, on every rank alike, a CommunicationError unless all members called the same collective with sizes that fit.
void check_round(const Round& round);

/// Queues this rank's part on `stream`, on the current device. Its own memory may be written by peers' parts.
/// Order   after the peers' earlier work, which `stream` waits for already
/// Throws  c10::Error when CUDA refuses a launch
void enqueue(const Round& round, cudaStream_t stream);

}  // namespace tessera::cuda
