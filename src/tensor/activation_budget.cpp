// SPDX-License-Identifier: Apache-2.0
// Counting the memory that activations share, and choosing which of them go.
#include "tensor/activation_budget.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "tensor/recompute.h"
#include "tessera/base/log.h"
#include "tessera/base/text.h"

namespace tessera::tensor {
namespace {

/// Asks every call that would run whether it may. Precondition: `producers` is in order.
bool are_repeatable(const std::vector<std::shared_ptr<Producer>>& producers) {
  for (const auto& producer : producers) {
    if (!producer->is_repeatable()) return false;
  }
  return true;
}

}  // namespace

/// Memory that holds values: once, however many views there are. It is free when all of them are dropped.
struct ActivationBudget::Memory {
  std::int64_t bytes = 0;
  std::vector<Entry*> users;

  [[nodiscard]] bool can_be_freed(bool cheaply) const {
    return std::all_of(users.begin(), users.end(), [&](Entry* user) {
      const std::shared_ptr<Value> value = user->value.lock();
      if (value == nullptr || !value->can_be_made_again() || (cheaply && user->is_expensive)) return false;
      const auto producers = producers_of(*value);
      user->is_expensive = std::any_of(producers.begin(), producers.end(), [](const auto& p) { return p->is_expensive; });
      return !(cheaply && user->is_expensive) && are_repeatable(producers);
    });
  }
};

std::vector<ActivationBudget::Memory> ActivationBudget::memories() {
  std::vector<Memory> memories;
  std::unordered_map<const SharedMemory*, std::size_t> known;
  for (Entry& entry : entries_) {
    const std::shared_ptr<Value> value = entry.value.lock();
    const SharedMemory* shared = value->memory().get();
    if (!value->has_data() || shared == nullptr) continue;
    const auto [place, is_new] = known.emplace(shared, memories.size());
    if (is_new) memories.push_back({.bytes = shared->bytes, .users = {}});
    memories[place->second].users.push_back(&entry);
  }
  return memories;
}

std::int64_t ActivationBudget::admit(const std::vector<std::weak_ptr<Value>>& made) {
  for (const std::weak_ptr<Value>& value : made) entries_.push_back({value});
  std::erase_if(entries_, [](const Entry& entry) { return entry.value.expired(); });
  std::vector<Memory> all = memories();
  std::int64_t resident = 0;
  for (const Memory& memory : all) resident += memory.bytes;
  std::int64_t dropped = 0;
  for (const bool cheaply : {true, false}) {
    for (Memory& memory : all) {
      if (resident <= bytes_) return dropped;
      if (memory.bytes == 0 || !memory.can_be_freed(cheaply)) continue;
      for (const Entry* user : memory.users) dropped += user->value.lock()->drop() ? 1 : 0;
      resident -= std::exchange(memory.bytes, 0);
    }
  }
  if (resident > bytes_ && !std::exchange(warned_, true)) {
    base::warn("recompute = \"{}\": {} of activations or more stay whatever is dropped, such as what blocks are given",
               base::exact_bytes(bytes_), base::human_bytes(resident));
  }
  return dropped;
}

}  // namespace tessera::tensor
