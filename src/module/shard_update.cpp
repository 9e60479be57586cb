// SPDX-License-Identifier: Apache-2.0
// Opening tensors for an element-wise update, and bringing results home.
#include "module/shard_update.h"

#include <ATen/ops/empty_like.h>

#include "tensor/decision_cache.h"
#include "tensor/gather_ahead.h"
#include "tensor/mesh_storage.h"
#include "tensor/redistribute.h"
#include "tessera/base/error.h"
#include "tessera/tensor/mesh_tensor.h"
#include "tessera/tensor/stages.h"

namespace tessera::module {
namespace {

/// Dense memory ordered as that of `like`: `local` itself if it is that already.
at::Tensor ordered_like(const at::Tensor& local, const at::Tensor& like) {
  const bool same_order = local.strides() == like.strides() || (local.is_contiguous() && like.is_contiguous());
  return same_order && local.scalar_type() == like.scalar_type() && !local.is_conj()
             ? local
             : at::empty_like(like).copy_(local);
}

at::Tensor dense(const at::Tensor& local) {
  return local.is_non_overlapping_and_dense() ? local : at::empty_like(local);
}

/// The axis along which a gather is all that leads from `from` to `to`; -1: there is none.
int gathered_axis(const Placements& from, const Placements& to) {
  int found = -1;
  for (int axis = 0; axis < from.size(); ++axis) {
    if (from[axis] == to[axis]) continue;
    if (found >= 0 || !from[axis].is_shard() || !to[axis].is_replicate()) return -1;
    found = axis;
  }
  // What an earlier axis cuts is a chunk of this one's chunk.
  for (int axis = 0; axis < found; ++axis) {
    if (from[axis].is_shard(from[found].dim)) return -1;
  }
  return found;
}

}  // namespace

ShardUpdate::ShardUpdate(const at::Tensor& like) : like_(dense(local(like))) {
  if (!is_mesh_tensor(like)) return;
  mesh_ = mesh_of(like);
  placements_ = placements(like);
}

at::Tensor ShardUpdate::read(const at::Tensor& tensor) const {
  check<ShapeError>(!tensor.is_sparse(),
                    "optimizer step: the gradient is sparse; allowed: dense gradients; set sparse "
                    "to false where it is made, or use torch::optim::SGD");
  if (!mesh_) return ordered_like(full(tensor), like_);
  if (is_mesh_tensor(tensor)) return ordered_like(tensor::read_as(tensor, placements_), like_);
  const Placements whole = Placements::replicated(mesh_->num_axes());
  return ordered_like(tensor::redistribute_local(tensor, tensor.sizes(), tensor.strides(), whole, placements_, *mesh_), like_);
}

at::Tensor ShardUpdate::write(const at::Tensor& tensor) {
  // Copies on other pipeline stages are out of date after the update.
  if (is_mesh_tensor(tensor)) tensor::MeshRuntime::of(mesh_of(tensor)).stages.forget_copies(tensor);
  at::Tensor opened = read(tensor);
  written_.emplace_back(tensor, opened);
  return opened;
}

void ShardUpdate::bring_home(const at::Tensor& tensor, const at::Tensor& opened, CoalescedGather& gathers) const {
  const at::Tensor home = local(tensor);
  if (!mesh_ || !is_mesh_tensor(tensor) || placements(tensor) == placements_) {
    if (!opened.is_same(home)) home.copy_(opened);
  } else if (const int axis = gathered_axis(placements_, placements(tensor)); axis >= 0 && is_here(tensor)) {
    gathers.add(opened, home, placements_[axis], *mesh_, axis);
  } else {
    home.copy_(tensor::redistribute_local(opened, tensor.sizes(), tensor.strides(), placements_, placements(tensor), *mesh_));
  }
}

void ShardUpdate::finish(CoalescedGather& gathers) {
  for (const auto& [tensor, opened] : written_) {
    bring_home(tensor, opened, gathers);
    if (is_mesh_tensor(tensor)) tensor::forget_gathered(tensor);
    tensor.unsafeGetTensorImpl()->bump_version();
    if (is_mesh_tensor(tensor)) tensor::storage_of(tensor).note_write();
  }
  written_.clear();
}

}  // namespace tessera::module
