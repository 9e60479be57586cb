// SPDX-License-Identifier: Apache-2.0
// What all worlds share: checking group requests, and the groups of one rank that an abort must reach.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <mutex>
#include <string>
#include <vector>

#include "comm/region.h"

namespace tessera::comm::detail {

/// Position of `rank` in `members`.
/// Throws  ConfigError unless members are ascending ranks of the world and contain `rank`
[[nodiscard]] int position_in_group(int rank, int world_size, const std::vector<int>& members, const std::string& name);

/// "tp:0,1,2": one string per group of a job.
[[nodiscard]] std::string group_key(const std::vector<int>& members, const std::string& name);

/// The largest world: a fingerprint holds that many roots.
inline constexpr int kMaxWorldSize = 2047;
void check_world(const char* maker, int rank, int size);

/// Groups that a rank has made. Threads: any.
class GroupBook {
 public:
  /// A group over shared memory, which the book keeps: a rank that fails has often let go of its groups already.
  void add(const Region& region);
  /// A group of another engine.
  void add(const c10::intrusive_ptr<c10d::Backend>& backend);
  /// Poisons or aborts all of them, and every later one.
  void abort(const std::string& reason) noexcept;

 private:
  static void abort_one(c10d::Backend& backend) noexcept;

  std::mutex mutex_;
  std::vector<Region> regions_;
  std::vector<c10::weak_intrusive_ptr<c10d::Backend>> backends_;
  std::string reason_;
};

}  // namespace tessera::comm::detail
