// SPDX-License-Identifier: Apache-2.0
// Where operators ran in forward, so that backward runs there too.
#pragma once

#include <cstdint>
#include <deque>

#include "tessera/mesh/placement.h"

namespace tessera::tensor {

/// Stages by the sequence number of the autograd node that an operator belongs to. What a gradient's operands say does
/// not suffice: an activation that was sent on lies on two stages, and an operator of either may have saved it.
class ForwardStages {
 public:
  /// Called below autograd, which has just made the operator's node if it made one.
  void note(std::uint64_t next_sequence_number, StageSet stages) {
    if (next_sequence_number == next_) return;  // no new node, or a later operator of the same one
    // Numbers of another thread, or of a graph long gone.
    if (next_sequence_number < next_ || next_sequence_number > next_ + kMaxNodes) stages_.clear();
    if (stages_.empty()) next_ = next_sequence_number - 1;
    while (++next_ < next_sequence_number) stages_.push_back(0);
    stages_.push_back(stages);
    while (stages_.size() > kMaxNodes) stages_.pop_front();
  }
  /// 0: not known.
  [[nodiscard]] StageSet of(std::uint64_t sequence_number) const {
    const std::uint64_t number = without_stage(sequence_number);
    const std::uint64_t first = next_ - stages_.size();
    return number < first || number >= next_ ? 0 : stages_[number - first];
  }

  /// A sequence number that stands above all numbers of earlier stages.
  [[nodiscard]] static std::uint64_t on_stage(std::uint64_t sequence_number, int stage) noexcept {
    return (static_cast<std::uint64_t>(stage) + 1) << kStageShift | without_stage(sequence_number);
  }
  [[nodiscard]] static std::uint64_t without_stage(std::uint64_t sequence_number) noexcept {
    return sequence_number & ((std::uint64_t{1} << kStageShift) - 1);
  }

 private:
  static constexpr unsigned kStageShift = 48;
  static constexpr std::uint64_t kMaxNodes = 1 << 20;
  std::deque<StageSet> stages_;
  std::uint64_t next_ = 0;  ///< one after the last number noted
};

}  // namespace tessera::tensor
