// SPDX-License-Identifier: Apache-2.0
// Which rank along axis pp computes which stage.
#pragma once

#include <bit>
#include <vector>

#include "tessera/mesh/mesh.h"

namespace tessera::tensor {

/// The first and the last stage of a set, as sets; empty of an empty one.
[[nodiscard]] constexpr StageSet lowest(StageSet stages) noexcept { return stages & (~stages + 1); }
[[nodiscard]] constexpr StageSet highest(StageSet stages) noexcept { return std::bit_floor(stages); }

/// The stages of a mesh, as one of its ranks sees them. Without an axis pp everything is everywhere.
class StageMap {
 public:
  /// Stage k on coordinate k of axis pp, if the mesh has one with several ranks.
  explicit StageMap(const Mesh& mesh);
  StageMap(const Mesh& mesh, std::vector<int> rank_of_stage);

  /// Index of axis pp; -1 if there are no stages.
  [[nodiscard]] int axis() const noexcept { return axis_; }
  [[nodiscard]] const std::vector<int>& rank_of_stage() const noexcept { return rank_of_stage_; }
  [[nodiscard]] StageSet all() const noexcept { return all_; }
  /// Stages that coordinate `rank` computes.
  [[nodiscard]] StageSet stages_of(int rank) const noexcept { return stages_of_[static_cast<std::size_t>(rank)]; }
  [[nodiscard]] StageSet stages_here() const noexcept { return here_; }
  [[nodiscard]] int ranks() const noexcept { return static_cast<int>(stages_of_.size()); }

  /// The stages on which a tensor of such placements lies.
  [[nodiscard]] StageSet set_of(const Placements& placements) const noexcept {
    return axis_ < 0 || placements[axis_].is_replicate() ? all_ : placements[axis_].stages;
  }
  /// True if this rank holds data of a tensor of such placements.
  [[nodiscard]] bool has_data(const Placements& placements) const noexcept {
    return axis_ < 0 || (set_of(placements) & here_) != 0;
  }
  /// The placement on axis pp of what lies on `stages`.
  [[nodiscard]] Placement placement_of(StageSet stages) const noexcept {
    return stages == all_ ? Replicate() : Stages(stages);
  }
  /// The coordinate that sends to coordinate `to` what lies on `stages`: the nearest one, of two the earlier.
  [[nodiscard]] int source_for(int to, StageSet stages) const noexcept;
  /// The first coordinate that has what lies on `stages`.
  [[nodiscard]] int first_rank(StageSet stages) const noexcept;

 private:
  int axis_ = -1;
  StageSet all_ = ~StageSet{0};
  StageSet here_ = ~StageSet{0};
  std::vector<int> rank_of_stage_;
  std::vector<StageSet> stages_of_;
};

}  // namespace tessera::tensor
