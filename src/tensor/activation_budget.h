// SPDX-License-Identifier: Apache-2.0
// As many activations of blocks that are done as fit a number of bytes.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace tessera::tensor {

class Value;

/// What is dropped is decided by sizes, operators and order alone, which all ranks of a group have in common: bringing an
/// activation back may be a collective. Source of the idea: Kirisame et al. 2021, arXiv:2006.09616, whose eviction by
/// measured cost, size and age would differ from rank to rank.
class ActivationBudget {
 public:
  explicit ActivationBudget(std::int64_t bytes) : bytes_(bytes) {}

  /// A block is done that made `made`, in order. Drops, from the first block on, what no expensive operator must bring
  /// back, and then whatever can be brought back, until the rest fits. Returns how many activations that were.
  [[nodiscard]] std::int64_t admit(const std::vector<std::weak_ptr<Value>>& made);

 private:
  struct Entry {
    std::weak_ptr<Value> value;
    bool is_expensive = false;  ///< to bring back; stays so
  };
  struct Memory;

  /// What holds data, in the order in which it was made.
  [[nodiscard]] std::vector<Memory> memories();

  std::int64_t bytes_;
  std::vector<Entry> entries_;  ///< of this step, in order
  bool warned_ = false;
};

}  // namespace tessera::tensor
