// SPDX-License-Identifier: Apache-2.0
// Redistribution: all-gather, reduce-scatter, all-reduce, all-to-all and local slices.
#include "tensor/redistribute.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/view_as_complex.h>
#include <ATen/ops/view_as_real.h>
#include <ATen/ops/zeros_like.h>

#include <limits>

#include "tensor/decision_cache.h"
#include "tensor/gather_ahead.h"
#include "tensor/layout.h"
#include "tessera/base/error.h"

namespace tessera::tensor {
namespace {

comm::ReduceOp reduce_op(PartialOp op) {
  switch (op) {
    case PartialOp::kMax:
      return comm::ReduceOp::kMax;
    case PartialOp::kMin:
      return comm::ReduceOp::kMin;
    case PartialOp::kSum:
      break;
  }
  return comm::ReduceOp::kSum;
}

at::Tensor pad_dim(const at::Tensor& tensor, std::int64_t dim, std::int64_t length) {
  const std::int64_t missing = length - tensor.size(dim);
  if (missing == 0) return tensor;
  std::vector<std::int64_t> padding(static_cast<std::size_t>(2 * (tensor.dim() - dim)), 0);
  padding.back() = missing;
  return at::constant_pad_nd(tensor, padding);
}

/// Shards of a dim of `size`, one per rank of `group`, become the whole dim.
at::Tensor gather(const at::Tensor& local, std::int64_t dim, std::int64_t size, const comm::Communicator& group) {
  const ShardRows shard(local, dim, size, group.size());
  return shard.whole(group.all_gather(shard.rows));
}

/// Sum of everybody's `local`, each rank keeping its chunk of `dim`.
at::Tensor reduce_scatter(const at::Tensor& local, std::int64_t dim, PartialOp op, const comm::Communicator& group) {
  // A sum of complex numbers is one of pairs.
  if (local.is_complex()) return at::view_as_complex(reduce_scatter(at::view_as_real(local), dim, op, group));
  const at::Tensor mine = group.reduce_scatter(rows_to_scatter(local, dim, group.size()), reduce_op(op));
  return from_scattered_rows(mine, dim, local.size(dim), group.size(), group.rank()).contiguous();
}

/// A new tensor with the reduction; `local` stays as it was (views of it may still be partial).
at::Tensor all_reduce(const at::Tensor& local, PartialOp op, const comm::Communicator& group) {
  if (local.is_complex()) return at::view_as_complex(all_reduce(at::view_as_real(local), op, group));
  at::Tensor result = local.clone();
  // A dense layout, transposed or not, travels as the flat memory it is.
  at::Tensor flat = result.is_non_overlapping_and_dense() ? result.as_strided({result.numel()}, {1}) : result;
  group.all_reduce(flat, reduce_op(op));
  return result;
}

/// Shards of dim `from` (of `size`) become shards of dim `to`.
at::Tensor exchange(const at::Tensor& local, std::int64_t from, std::int64_t size, std::int64_t to,
                    const comm::Communicator& group) {
  const int ranks = group.size();
  std::vector<at::Tensor> outgoing;
  std::vector<std::int64_t> send_counts;
  std::vector<std::int64_t> receive_counts;
  const Extent mine = chunk_extent(local.size(to), ranks, group.rank());
  std::vector<std::int64_t> piece_sizes = local.sizes().vec();
  piece_sizes[static_cast<std::size_t>(to)] = mine.length;
  for (int peer = 0; peer < ranks; ++peer) {
    const Extent theirs = chunk_extent(local.size(to), ranks, peer);
    outgoing.push_back(local.narrow(to, theirs.offset, theirs.length).reshape({-1}));
    send_counts.push_back(outgoing.back().numel());
    piece_sizes[static_cast<std::size_t>(from)] = chunk_extent(size, ranks, peer).length;
    receive_counts.push_back(c10::multiply_integers(piece_sizes));
  }
  const at::Tensor received = group.all_to_all(at::cat(outgoing), send_counts, receive_counts);
  std::vector<at::Tensor> pieces;
  std::int64_t offset = 0;
  for (int peer = 0; peer < ranks; ++peer) {
    piece_sizes[static_cast<std::size_t>(from)] = chunk_extent(size, ranks, peer).length;
    const std::int64_t count = receive_counts[static_cast<std::size_t>(peer)];
    pieces.push_back(received.narrow(0, offset, count).view(piece_sizes));
    offset += count;
  }
  return at::cat(pieces, from);
}

/// What gathers a parameter for its use: along the axes whose bits are set.
struct GatherForUse {
  GatherAhead* ahead = nullptr;
  unsigned axes = 0;
};

/// State of one redistribution: the shard and how it lies now.
struct Step {
  at::Tensor local;
  Placements now;
  const Placements& to;
  at::IntArrayRef global_sizes;
  const Mesh& mesh;
  GatherForUse for_use;

  /// Gathers `dim`, of `size` before `axis` cut it.
  void gather_axis(int axis, int dim, std::int64_t size) {
    const bool is_ahead = (for_use.axes >> static_cast<unsigned>(axis) & 1U) != 0;
    local = is_ahead ? for_use.ahead->gather(local, dim, size, mesh, axis) : gather(local, dim, size, mesh.along(axis));
    now[axis] = Replicate();
    for_use = {};  // the rest is not memory of the parameter
  }

  /// Extent of `dim` on this rank before `axis` cuts it.
  [[nodiscard]] std::int64_t size_before(int axis, int dim) const {
    Placements before = now;
    for (int later = 0; later <= axis; ++later) before[later] = Replicate();
    return local_extent(global_sizes[static_cast<std::size_t>(dim)], dim, before, mesh).length;
  }

  [[nodiscard]] bool only_axis_on(int axis, int dim) const {
    for (int other = 0; other < now.size(); ++other) {
      if (other != axis && (now[other].is_shard(dim) || to[other].is_shard(dim))) return false;
    }
    return true;
  }

  /// A chunk of a chunk cannot be kept while the larger chunk changes.
  [[nodiscard]] bool larger_chunk_changes(int axis, int dim) const {
    for (int earlier = axis + 1; earlier < now.size(); ++earlier) {
      if (now[earlier].is_shard(dim) != to[earlier].is_shard(dim)) return true;
    }
    return false;
  }
};

/// Shards that must go: exchanged directly where that is possible, else gathered; the smallest chunks first.
void leave_shards(Step& step) {
  for (int axis = 0; axis < step.now.size(); ++axis) {
    if (!step.now[axis].is_shard()) continue;
    const int dim = step.now[axis].dim;
    const Placement target = step.to[axis];
    if (target == step.now[axis] && !step.larger_chunk_changes(axis, dim)) continue;
    const std::int64_t size = step.size_before(axis, dim);
    if (target.is_shard() && target.dim != dim && step.only_axis_on(axis, dim) && step.only_axis_on(axis, target.dim)) {
      step.local = exchange(step.local, dim, size, target.dim, step.mesh.along(axis));
      step.for_use = {};
      step.now[axis] = target;
      continue;
    }
    step.gather_axis(axis, dim, size);
  }
}

/// From partial and replicated to where each axis should be, in the order in which axes cut.
void reach_targets(Step& step) {
  for (int axis = step.now.size() - 1; axis >= 0; --axis) {
    const Placement now = step.now[axis];
    const Placement target = step.to[axis];
    if (now == target) continue;
    const comm::Communicator& group = step.mesh.along(axis);
    if (now.is_partial() && target.is_shard()) {
      step.local = reduce_scatter(step.local, target.dim, now.op, group);
    } else {
      if (now.is_partial()) step.local = all_reduce(step.local, now.op, group);
      if (target.is_shard()) {
        const Extent extent = chunk_extent(step.local.size(target.dim), group.size(), group.rank());
        // Kernels may rely on the contiguity that global metadata shows.
        step.local = step.local.narrow(target.dim, extent.offset, extent.length).contiguous();
      } else if (target.is_partial() && target.op == PartialOp::kSum && group.rank() != 0) {
        step.local = at::zeros_like(step.local);
      }
    }
    step.now[axis] = target;
  }
}

/// To the stages that want it, before anything else: shards are smaller than what they may become.
void reach_stages(Step& step, int axis) {
  StageRuntime& runtime = MeshRuntime::of(step.mesh).stages;
  const Sizes sizes = local_sizes(step.global_sizes, step.now, step.mesh);
  const Sizes strides = contiguous_strides(sizes);
  const StageMap& map = runtime.map();
  const StageSet to = map.set_of(step.to);
  step.local = runtime.moved(step.local, sizes, strides, map.set_of(step.now), to, step.mesh);
  // Whoever has the value though nobody asked for it there forgets it.
  if ((to & map.stages_here()) == 0) step.local = step.local.to(at::kMeta);
  step.now[axis] = step.to[axis];
}

/// What a rank without data has after redistribution.
at::Tensor absent(const Step& step) {
  return at::empty(local_sizes(step.global_sizes, step.to, step.mesh), step.local.options());
}

at::Tensor redistribute_step(Step step) {
  const at::Tensor before = step.local;
  if (const int stages = MeshRuntime::of(step.mesh).stages.axis(); stages >= 0) reach_stages(step, stages);
  if (step.local.is_meta()) return absent(step);
  if (!step.local.is_same(before)) step.for_use = {};
  leave_shards(step);
  reach_targets(step);
  return step.local;
}

bool reduces(const Placements& from, const Placements& to) {
  for (int axis = 0; axis < from.size(); ++axis) {
    if (from[axis].is_partial() && to[axis].is_replicate()) return true;
  }
  return false;
}

}  // namespace

ShardRows::ShardRows(const at::Tensor& local, std::int64_t dim_, std::int64_t size_, int ranks)
    : rows(pad_dim(local, dim_, chunk_extent(size_, ranks, 0).length).movedim(dim_, 0)),
      dim(dim_),
      size(size_),
      as_it_lies(rows.is_contiguous() && !local.is_contiguous()) {
  rows = rows.contiguous();
}

at::Tensor ShardRows::whole(const at::Tensor& gathered) const {
  const at::Tensor result = gathered.narrow(0, 0, size).movedim(0, dim);
  return as_it_lies ? result : result.contiguous();
}

at::Tensor rows_to_scatter(const at::Tensor& local, std::int64_t dim, int ranks) {
  const std::int64_t chunk = chunk_extent(local.size(dim), ranks, 0).length;
  return pad_dim(local, dim, chunk * ranks).movedim(dim, 0).contiguous();
}

at::Tensor from_scattered_rows(const at::Tensor& rows, std::int64_t dim, std::int64_t size, int ranks, int rank) {
  return rows.narrow(0, 0, chunk_extent(size, ranks, rank).length).movedim(0, dim);
}

at::Tensor redistribute_local(const at::Tensor& local, at::IntArrayRef global_sizes, const Placements& from,
                              const Placements& to, const Mesh& mesh) {
  return from == to ? local : redistribute_step({local, from, to, global_sizes, mesh, {}});
}

void reduce_in_storage(const at::Tensor& tensor, const Placements& wanted) {
  MeshStorage& storage = storage_of(tensor);
  // A rank without the data asks for operands that lie as they are wanted, too: nothing may happen then.
  if (!reduces(storage.placements(), wanted)) return;
  storage.reduce_with_others();
  Placements reduced = storage.placements();
  bool sends = false;
  for (int axis = 0; axis < reduced.size(); ++axis) {
    if (!reduced[axis].is_partial() || !wanted[axis].is_replicate()) continue;
    reduced[axis] = Replicate();
    sends = sends || storage.mesh().axis_size(axis) > 1;
  }
  if (reduced == storage.placements()) return;
  if (sends) storage.family.leave();
  const at::Tensor& local = storage.local();
  const std::shared_ptr<Value> before = storage.value;
  storage.replace(redistribute_local(local, tensor.sizes(), storage.placements(), reduced, storage.mesh()), reduced);
  if (before != nullptr) MeshRuntime::of(storage.mesh()).recompute.add_reduction(tensor, before);
}

at::Tensor read_as(const at::Tensor& tensor, const Placements& to) {
  MeshStorage& storage = storage_of(tensor);
  if (storage.placements() == to) return storage.local();
  reduce_in_storage(tensor, to);
  return redistribute_local(storage.local(), tensor.sizes(), storage.placements(), to, storage.mesh());
}

at::Tensor read_for_use(const at::Tensor& tensor, const Placements& to) {
  MeshStorage& storage = storage_of(tensor);
  if (storage.gather_ahead == nullptr) return read_as(tensor, to);
  if (storage.placements() == to) return storage.local();
  return redistribute_step({storage.local(),
                            storage.placements(),
                            to,
                            tensor.sizes(),
                            storage.mesh(),
                            {storage.gather_ahead.get(), storage.gathered_at_use}});
}

double redistribution_bytes(const Placement& from, const Placement& to, double bytes, int axis_size) {
  if (from == to) return 0;
  const double share = static_cast<double>(axis_size - 1) / axis_size;
  if (from.is_replicate()) return 0;
  if (to.is_partial()) return std::numeric_limits<double>::infinity();
  if (from.is_partial()) return (to.is_shard() ? 1 : 2) * share * bytes;
  return to.is_shard() ? share * bytes / axis_size : share * bytes;
}

}  // namespace tessera::tensor
