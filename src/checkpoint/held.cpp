// SPDX-License-Identifier: Apache-2.0
// The boxes of shards, and replicas.
#include "checkpoint/held.h"

#include "tensor/box.h"
#include "tensor/decision_cache.h"
#include "tessera/tensor/mesh_tensor.h"
#include "tessera/tensor/stages.h"

namespace tessera::checkpoint {
namespace {

tensor::Box box_of(const at::Tensor& tensor) {
  if (!is_mesh_tensor(tensor)) return tensor::Box::whole_of(tensor.sizes());
  return tensor::Box::of(tensor.sizes(), placements(tensor), mesh_of(tensor));
}

/// `boxes` with `dim` in its parts instead of side by side.
std::vector<HeldBox> taken_apart(const std::vector<HeldBox>& boxes, std::size_t dim, const tensor::Extents& parts) {
  std::vector<HeldBox> result;
  for (HeldBox box : boxes) {
    std::int64_t place = 0;
    for (const Extent& extent : parts) {
      box.offset[dim] = extent.offset;
      box.local_offset[dim] = place;
      box.length[dim] = extent.length;
      result.push_back(box);
      place += extent.length;
    }
  }
  return result;
}

/// Coordinates along axis pp that hold a tensor, and which of them this rank's is.
Replica replica_on_stages(const at::Tensor& tensor, int axis) {
  const tensor::StageMap& map = tensor::MeshRuntime::of(mesh_of(tensor)).stages.map();
  const StageSet stages = map.set_of(placements(tensor));
  Replica replica{-1, 0};
  for (int rank = 0; rank < map.ranks(); ++rank) {
    if ((map.stages_of(rank) & stages) == 0) continue;
    if (rank == mesh_of(tensor).coordinate(axis)) replica.index = replica.count;
    ++replica.count;
  }
  return replica;
}

}  // namespace

std::vector<HeldBox> held_boxes(const at::Tensor& tensor) {
  if (!is_here(tensor)) return {};
  const tensor::Box box = box_of(tensor);
  if (box.num_elements() == 0) return {};
  HeldBox held;
  for (const Extent& extent : box.extents) {
    held.offset.push_back(extent.offset);
    held.local_offset.push_back(0);
    held.length.push_back(extent.length);
  }
  std::vector<HeldBox> boxes{held};
  for (const auto& [dim, parts] : box.parts) boxes = taken_apart(boxes, dim, parts);
  return boxes;
}

Replica replica_of(const at::Tensor& tensor, int world_rank, int world_size) {
  if (!is_mesh_tensor(tensor)) return {world_rank, world_size};
  const Mesh& mesh = mesh_of(tensor);
  Replica result;
  for (int axis = 0; axis < mesh.num_axes(); ++axis) {
    const Placement& placement = placements(tensor)[axis];
    if (placement.is_shard()) continue;
    const Replica here = placement.is_stage() ? replica_on_stages(tensor, axis)
                                              : Replica{mesh.coordinate(axis), mesh.axis_size(axis)};
    if (here.index < 0) return {-1, 1};
    result = {result.index * here.count + here.index, result.count * here.count};
  }
  return result;
}

at::Tensor part(at::Tensor memory, const std::vector<std::int64_t>& offset, const std::vector<std::int64_t>& length) {
  for (std::size_t dim = 0; dim < offset.size(); ++dim) {
    memory = memory.narrow(static_cast<std::int64_t>(dim), offset[dim], length[dim]);
  }
  return memory;
}

}  // namespace tessera::checkpoint
