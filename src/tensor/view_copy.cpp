// SPDX-License-Identifier: Apache-2.0
// Between a view that has memory of its own and the shards of its base.
#include "tensor/view_copy.h"

#include "tensor/gather_ahead.h"
#include "tensor/redistribute.h"
#include "tensor/stale_read.h"

namespace tessera::tensor {
namespace {

/// A rank that has a dim in several parts has no box of it.
Placement whole_groups(const Placement& placement) {
  return placement.is_shard() && placement.cut.groups > 1 ? Replicate() : placement;
}
Placements whole_groups(Placements placements) {
  for (int axis = 0; axis < placements.size(); ++axis) placements[axis] = whole_groups(placements[axis]);
  return placements;
}

/// How the view must lie so that each rank has what its shard of the base takes.
Placements as_base_takes(const ViewCopy& copy, const Placements& now) {
  const Placements& base = storage_of(copy.base).placements();
  Placements wanted = now;
  for (int axis = 0; axis < now.size(); ++axis) {
    if (now[axis].is_stage() || base[axis].is_stage()) continue;
    wanted[axis] = copy.made[axis].is_shard() ? whole_groups(copy.made[axis]) : Replicate();
    if (base[axis].is_partial()) wanted[axis] = base[axis];
  }
  return wanted;
}

}  // namespace

void write_to_base(MeshStorage& storage) {
  ViewCopy& copy = *storage.copy;
  MeshStorage& base = storage_of(copy.base);
  const Mesh& mesh = storage.mesh();
  const Strided& view = *copy.shows;
  const Placements wanted = as_base_takes(copy, storage.placements());
  const at::Tensor values = redistribute_local(storage.local_unfinished(), view.sizes, view.strides, storage.placements(),
                                               wanted, mesh);
  const at::Tensor& local = base.local();
  if (!local.is_meta() && !values.is_meta()) {
    const ViewOfBase view_of_base(Strided::of(copy.base), view);
    const Box given = Box::of(view.sizes, wanted, mesh);
    for (const Piece& piece : pieces_of(Box::of(copy.base.sizes(), base.placements(), mesh), local)) {
      view_of_base.write(piece.local, piece.box, values, given);
    }
  }
  forget_gathered(copy.base);
  base.note_write();
  copy.seen = storage.num_writes();
}

void read_base_again(MeshStorage& storage, const at::Tensor& local) {
  ViewCopy& copy = *storage.copy;
  MeshStorage& base = storage_of(copy.base);
  const Mesh& mesh = storage.mesh();
  copy.seen = storage.num_writes();
  if (local.is_meta()) return;
  const at::Tensor& shard = base.local();
  if (!copy.shows || shard.is_meta()) {
    throw StaleRead(
        "a view that has memory of its own was made before its base was written; make it again after the write, or write "
        "with an out-of-place operator");
  }
  Placements gathered = whole_groups(copy.gathered);
  for (int axis = 0; axis < gathered.size(); ++axis) {
    if (base.placements()[axis].is_stage()) gathered[axis] = base.placements()[axis];
  }
  const at::Tensor whole = redistribute_local(shard, copy.base.sizes(), copy.base.strides(), base.placements(), gathered, mesh);
  const Strided& view = *copy.shows;
  at::Tensor values = ViewOfBase(Strided::of(copy.base), view)
                          .read(whole, Box::of(copy.base.sizes(), gathered, mesh),
                                Box::of(view.sizes, whole_groups(copy.made), mesh));
  if (!values.defined()) values = local;
  Placements made = whole_groups(copy.made);
  for (int axis = 0; axis < made.size(); ++axis) {
    if (storage.placements()[axis].is_stage()) made[axis] = storage.placements()[axis];
  }
  at::Tensor target = local;
  target.copy_(redistribute_local(values, view.sizes, view.strides, made, storage.placements(), mesh));
}

}  // namespace tessera::tensor
