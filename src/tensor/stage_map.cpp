// SPDX-License-Identifier: Apache-2.0
// Which rank along axis pp computes which stage.
#include "tensor/stage_map.h"

#include <cstdlib>
#include <numeric>

#include "tensor/decision_cache.h"
#include "tensor/mesh_storage.h"
#include "tessera/base/error.h"
#include "tessera/tensor/stages.h"

namespace tessera {
namespace tensor {
namespace {

std::vector<int> one_each(int ranks) {
  std::vector<int> map(static_cast<std::size_t>(ranks));
  std::iota(map.begin(), map.end(), 0);
  return map;
}

int stage_axis(const Mesh& mesh) {
  const int axis = mesh.axis_index("pp");
  return axis >= 0 && mesh.axis_size(axis) > 1 ? axis : -1;
}

}  // namespace

StageMap::StageMap(const Mesh& mesh) {
  const int axis = stage_axis(mesh);
  if (axis >= 0) *this = StageMap(mesh, one_each(mesh.axis_size(axis)));
}

StageMap::StageMap(const Mesh& mesh, std::vector<int> rank_of_stage)
    : axis_(stage_axis(mesh)), rank_of_stage_(std::move(rank_of_stage)) {
  const auto count = static_cast<int>(rank_of_stage_.size());
  check<ConfigError>(axis_ >= 0, "stages: mesh {} has no axis pp of several ranks; add one, for instance pp=2",
                     mesh.to_string());
  check<ConfigError>(count >= 1 && count <= kMaxStages, "stages: {} stages; allowed: 1 to {}", count, kMaxStages);
  all_ = count == kMaxStages ? ~StageSet{0} : (StageSet{1} << static_cast<unsigned>(count)) - 1;
  stages_of_.resize(static_cast<std::size_t>(mesh.axis_size(axis_)), 0);
  for (int stage = 0; stage < count; ++stage) {
    const int rank = rank_of_stage_[static_cast<std::size_t>(stage)];
    check<ConfigError>(rank >= 0 && rank < ranks(), "stages: stage {} on rank {} of axis pp; allowed: 0 to {}", stage,
                       rank, ranks() - 1);
    stages_of_[static_cast<std::size_t>(rank)] |= Stage(stage).stages;
  }
  here_ = stages_of_[static_cast<std::size_t>(mesh.coordinate(axis_))];
}

int StageMap::source_for(int to, StageSet stages) const noexcept {
  int best = -1;
  for (int rank = 0; rank < ranks(); ++rank) {
    if ((stages_of(rank) & stages) == 0) continue;
    if (best < 0 || std::abs(rank - to) < std::abs(best - to)) best = rank;
  }
  return best;
}

int StageMap::first_rank(StageSet stages) const noexcept { return source_for(0, stages); }

}  // namespace tensor

void set_stages(const Mesh& mesh, const std::vector<int>& rank_of_stage) {
  tensor::MeshRuntime::of(mesh).stages.set_map(mesh, rank_of_stage);
}

const std::vector<int>& rank_of_stage(const Mesh& mesh) {
  return tensor::MeshRuntime::of(mesh).stages.map().rank_of_stage();
}

StageTraffic stage_traffic(const Mesh& mesh) { return tensor::MeshRuntime::of(mesh).stages.traffic(); }

bool is_here(const at::Tensor& tensor) {
  if (!tensor::is_mesh(tensor)) return true;
  const tensor::MeshStorage& storage = tensor::storage_of(tensor);
  return tensor::MeshRuntime::of(storage.mesh()).stages.map().has_data(storage.placements());
}

}  // namespace tessera
