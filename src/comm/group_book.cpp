// SPDX-License-Identifier: Apache-2.0
// Request checks and the reach of an abort.
#include "comm/group_book.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "comm/arrival.h"
#include "tessera/base/error.h"

namespace tessera::comm::detail {

int position_in_group(int rank, int world_size, const std::vector<int>& members, const std::string& name) {
  const bool is_ascending = std::adjacent_find(members.begin(), members.end(), std::greater_equal<>()) == members.end();
  check<ConfigError>(!members.empty() && is_ascending && members.front() >= 0 && members.back() < world_size,
                     "group {}: members [{}] must be ascending ranks in 0..{}", name, fmt::join(members, ", "),
                     world_size - 1);
  const auto found = std::find(members.begin(), members.end(), rank);
  check<ConfigError>(found != members.end(), "group {}: rank {} asks for it but is not one of its members [{}]", name,
                     rank, fmt::join(members, ", "));
  return static_cast<int>(found - members.begin());
}

std::string group_key(const std::vector<int>& members, const std::string& name) {
  return fmt::format("{}:{}", name, fmt::join(members, ","));
}

void check_world(const char* maker, int rank, int size) {
  check<ConfigError>(size >= 1 && size <= kMaxWorldSize, "{}: size is {}, allowed are 1..{}", maker, size,
                     kMaxWorldSize);
  check<ConfigError>(rank >= 0 && rank < size, "{}: rank is {}, allowed are 0..{}", maker, rank, size - 1);
}

void GroupBook::add(const Region& region) {
  const std::lock_guard lock(mutex_);
  regions_.push_back(region);
  if (!reason_.empty()) poison(region, reason_);
}

void GroupBook::add(const c10::intrusive_ptr<c10d::Backend>& backend) {
  const std::lock_guard lock(mutex_);
  std::erase_if(backends_, [](const auto& known) { return known.expired(); });
  backends_.emplace_back(backend);
  if (!reason_.empty()) abort_one(*backend);
}

void GroupBook::abort(const std::string& reason) noexcept {
  const std::lock_guard lock(mutex_);
  if (!reason_.empty()) return;
  reason_ = reason.empty() ? "no reason given" : reason;
  for (const Region& region : regions_) poison(region, reason_);
  for (const auto& known : backends_) {
    if (const auto backend = known.lock()) abort_one(*backend);
  }
}

void GroupBook::abort_one(c10d::Backend& backend) noexcept {
  try {
    backend.abort();
  } catch (const std::exception&) {
    // The rank is failing already; its own error is the one that counts.
    return;
  }
}

}  // namespace tessera::comm::detail
