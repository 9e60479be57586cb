// SPDX-License-Identifier: Apache-2.0
// What a program has against what a checkpoint has.
#pragma once

#include <string>
#include <vector>

#include "checkpoint/collector.h"

namespace tessera::checkpoint {

struct TensorMatch {
  at::Tensor tensor;
  const SavedTensor* saved;
};

struct ValueMatch {
  const ValueItem* item;
  const Value* saved;
};

struct Matches {
  std::vector<TensorMatch> tensors;
  std::vector<ValueMatch> values;
};

/// True if `name` is one of `only`, or lies below one ("model" has "model.up.weight"); always, if `only` is empty.
[[nodiscard]] bool is_chosen(const std::string& name, const std::vector<std::string>& only);

/// Pairs everything that is chosen. Throws CheckpointMismatch with the first ten differences and their count.
[[nodiscard]] Matches match(const Collector& collector, const std::vector<std::string>& only, const std::string& folder);

}  // namespace tessera::checkpoint
