// SPDX-License-Identifier: Apache-2.0
// Redistribution: all-gather, reduce-scatter, all-reduce, all-to-all and local slices.
#include "tensor/redistribute.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>

#include <limits>

#include "tensor/decision_cache.h"
#include "tensor/gather_ahead.h"
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

/// Shards of a dim, one per rank of `group`, become the whole dim.
at::Tensor gather(const at::Tensor& local, std::int64_t dim, const DimCut& cut, const comm::Communicator& group) {
  const ShardRows shard(local, dim, cut);
  return shard.whole(group.all_gather(shard.rows));
}

/// Sum of everybody's `local`, each rank keeping its part of `dim`.
at::Tensor reduce_scatter(const at::Tensor& local, std::int64_t dim, const DimCut& cut, PartialOp op,
                          const comm::Communicator& group) {
  const at::Tensor mine = group.reduce_scatter(rows_to_scatter(local, dim, cut), reduce_op(op));
  return from_scattered_rows(mine, dim, cut, group.rank()).contiguous();
}

/// A new tensor with the reduction; `local` stays as it was (views of it may still be partial).
at::Tensor all_reduce(const at::Tensor& local, PartialOp op, const comm::Communicator& group) {
  at::Tensor result = local.clone(at::MemoryFormat::Contiguous);
  group.all_reduce(result, reduce_op(op));
  return result;
}

/// One all-to-all: `outgoing` are the pieces for each rank, `sizes_from(rank)` what that rank sends here.
template <class SizesFrom>
std::vector<at::Tensor> exchange_pieces(std::vector<at::Tensor> outgoing, const SizesFrom& sizes_from,
                                        const comm::Communicator& group) {
  std::vector<std::int64_t> send_counts;
  std::vector<std::int64_t> receive_counts;
  for (int peer = 0; peer < group.size(); ++peer) {
    at::Tensor& piece = outgoing[static_cast<std::size_t>(peer)];
    piece = piece.reshape({-1});
    send_counts.push_back(piece.numel());
    receive_counts.push_back(c10::multiply_integers(sizes_from(peer)));
  }
  const at::Tensor received = group.all_to_all(at::cat(outgoing), send_counts, receive_counts);
  std::vector<at::Tensor> incoming;
  std::int64_t offset = 0;
  for (int peer = 0; peer < group.size(); ++peer) {
    const std::int64_t count = receive_counts[static_cast<std::size_t>(peer)];
    incoming.push_back(received.narrow(0, offset, count).view(sizes_from(peer)));
    offset += count;
  }
  return incoming;
}

/// Shards of dim `from` become shards of dim `to`, cut as `from_cut` and `to_cut` say.
at::Tensor exchange(const at::Tensor& local, std::int64_t from, const DimCut& from_cut, std::int64_t to,
                    const DimCut& to_cut, const comm::Communicator& group) {
  std::vector<at::Tensor> outgoing;
  for (int peer = 0; peer < group.size(); ++peer) outgoing.push_back(to_cut.part(local, to, peer));
  const auto sizes_from = [&](int peer) {
    std::vector<std::int64_t> sizes = local.sizes().vec();
    sizes[static_cast<std::size_t>(to)] = to_cut.length(group.rank());
    sizes[static_cast<std::size_t>(from)] = from_cut.length(peer);
    return sizes;
  };
  const std::vector<at::Tensor> incoming = exchange_pieces(std::move(outgoing), sizes_from, group);
  Pieces pieces;
  for (int peer = 0; peer < group.size(); ++peer) {
    std::int64_t place = 0;
    for (const Extent& run : from_cut.runs(peer)) {
      pieces.emplace_back(run.offset, incoming[static_cast<std::size_t>(peer)].narrow(from, place, run.length));
      place += run.length;
    }
  }
  return pieces.empty() ? local.new_empty(sizes_from(0)) : joined(std::move(pieces), from);
}

/// `extents`, parts of those that `local` holds along `dim`, one after the other.
at::Tensor taken(const at::Tensor& local, std::int64_t dim, const Extents& held, const Extents& extents) {
  std::vector<at::Tensor> pieces{local.narrow(dim, 0, 0)};
  for (const Extent& extent : extents) {
    std::int64_t place = 0;
    for (const Extent& run : held) {
      const bool is_here = run.offset <= extent.offset && extent.offset < run.offset + run.length;
      if (is_here) pieces.push_back(local.narrow(dim, place + extent.offset - run.offset, extent.length));
      place += run.length;
    }
  }
  return at::cat(pieces, dim);
}

/// Shards of `dim`, cut as `from` says, become shards of it that are cut as `to` says.
at::Tensor cut_again(const at::Tensor& local, std::int64_t dim, const DimCut& from, const DimCut& to,
                     const comm::Communicator& group) {
  const Extents held = from.runs(group.rank());
  const Extents wanted = to.runs(group.rank());
  std::vector<at::Tensor> outgoing;
  for (int peer = 0; peer < group.size(); ++peer) {
    outgoing.push_back(taken(local, dim, held, intersection(held, to.runs(peer))));
  }
  const auto sizes_from = [&](int peer) {
    std::vector<std::int64_t> sizes = local.sizes().vec();
    sizes[static_cast<std::size_t>(dim)] = 0;
    for (const Extent& extent : intersection(from.runs(peer), wanted)) sizes[static_cast<std::size_t>(dim)] += extent.length;
    return sizes;
  };
  const std::vector<at::Tensor> incoming = exchange_pieces(std::move(outgoing), sizes_from, group);
  Pieces pieces{{0, incoming[0].narrow(dim, 0, 0)}};
  for (int peer = 0; peer < group.size(); ++peer) {
    std::int64_t place = 0;
    for (const Extent& extent : intersection(from.runs(peer), wanted)) {
      pieces.emplace_back(extent.offset, incoming[static_cast<std::size_t>(peer)].narrow(dim, place, extent.length));
      place += extent.length;
    }
  }
  return joined(std::move(pieces), dim);
}

/// What gathers a parameter for its use: along the axes whose bits are set.
struct GatherForUse {
  GatherAhead* ahead = nullptr;
  unsigned axes = 0;
};

/// State of one redistribution: the shard and how it lies now. Dims stand in the order in which they lie in memory.
struct Step {
  at::Tensor local;
  Placements now;
  Placements to;
  Sizes global_sizes;
  const Mesh& mesh;
  GatherForUse for_use;

  /// Gathers `dim`, which `axis` cuts.
  void gather_axis(int axis, int dim, const DimCut& cut) {
    const bool is_ahead = (for_use.axes >> static_cast<unsigned>(axis) & 1U) != 0;
    local = is_ahead ? for_use.ahead->gather(local, dim, cut, mesh, axis) : gather(local, dim, cut, mesh.along(axis));
    now[axis] = Replicate();
    for_use = {};  // the rest is not memory of the parameter
  }

  /// How `axis` cuts `dim`: what other axes have left of it.
  [[nodiscard]] DimCut cut_by(int axis, int dim) const {
    Placements before = now;
    for (int later = 0; later <= axis; ++later) before[later] = Replicate();
    const std::int64_t size = local_length(global_sizes[static_cast<std::size_t>(dim)], dim, before, mesh);
    return {size, now[axis].cut, mesh.axis_size(axis)};
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
      const bool matters = now[earlier].is_shard(dim) || to[earlier].is_shard(dim);
      if (matters && now[earlier] != to[earlier]) return true;
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
    const DimCut cut = step.cut_by(axis, dim);
    if (target.is_shard() && step.only_axis_on(axis, dim) && step.only_axis_on(axis, target.dim)) {
      const comm::Communicator& group = step.mesh.along(axis);
      const std::int64_t size = target.is_shard(dim) ? cut.size() : step.local.size(target.dim);
      const DimCut wanted(size, target.cut, group.size());
      step.local = target.is_shard(dim) ? cut_again(step.local, dim, cut, wanted, group)
                                        : exchange(step.local, dim, cut, target.dim, wanted, group);
      step.for_use = {};
      step.now[axis] = target;
      continue;
    }
    step.gather_axis(axis, dim, cut);
  }
}

/// From partial and replicated to where each axis should be, in the order in which axes cut.
void reach_targets(Step& step) {
  for (int axis = step.now.size() - 1; axis >= 0; --axis) {
    const Placement now = step.now[axis];
    const Placement target = step.to[axis];
    if (now == target) continue;
    const comm::Communicator& group = step.mesh.along(axis);
    const auto wanted = [&] { return DimCut(step.local.size(target.dim), target.cut, group.size()); };
    if (now.is_partial() && target.is_shard()) {
      step.local = reduce_scatter(step.local, target.dim, wanted(), now.op, group);
    } else {
      if (now.is_partial()) step.local = all_reduce(step.local, now.op, group);
      if (target.is_shard()) {
        step.local = wanted().part(step.local, target.dim, group.rank()).contiguous();
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
  const StageMap& map = runtime.map();
  const StageSet to = map.set_of(step.to);
  step.local = runtime.moved(step.local, sizes, memory_order(sizes, contiguous_strides(sizes)), map.set_of(step.now), to, step.mesh);
  // Whoever has the value though nobody asked for it there forgets it.
  if ((to & map.stages_here()) == 0) step.local = step.local.to(at::kMeta);
  step.now[axis] = step.to[axis];
}

/// What a rank without data has after redistribution.
at::Tensor absent(const Step& step) {
  return at::empty(local_sizes(step.global_sizes, step.to, step.mesh), step.local.options());
}

at::Tensor redistribute_in_order(Step step) {
  const at::Tensor before = step.local;
  if (const int stages = MeshRuntime::of(step.mesh).stages.axis(); stages >= 0) reach_stages(step, stages);
  if (step.local.is_meta()) return absent(step);
  if (!step.local.is_same(before)) step.for_use = {};
  leave_shards(step);
  reach_targets(step);
  return step.local;
}

/// `placements` of a tensor whose dims were permuted by `order`, whose inverse is `positions`.
Placements permuted(Placements placements, const DimOrder& positions) {
  for (int axis = 0; axis < placements.size(); ++axis) {
    Placement& placement = placements[axis];
    if (!placement.is_shard()) continue;
    placement.dim = static_cast<std::int16_t>(positions[static_cast<std::size_t>(placement.dim)]);
  }
  return placements;
}

/// A tensor in any order of dims is a row-major one whose dims have other numbers. The order is that of the whole, which all
/// ranks know alike; kernels may rely on the layout that global metadata show.
at::Tensor redistribute_step(const at::Tensor& local, at::IntArrayRef global_sizes, at::IntArrayRef global_strides,
                             const Placements& from, const Placements& to, const Mesh& mesh, GatherForUse for_use) {
  const DimOrder order = memory_order(global_sizes, global_strides);
  const DimOrder positions = inverse(order);
  Sizes sizes;
  for (const std::int64_t dim : order) sizes.push_back(global_sizes[static_cast<std::size_t>(dim)]);
  const at::Tensor result = redistribute_in_order(
      {local.permute(order), permuted(from, positions), permuted(to, positions), sizes, mesh, for_use});
  return in_order(result.permute(positions), order);
}

bool reduces(const Placements& from, const Placements& to) {
  for (int axis = 0; axis < from.size(); ++axis) {
    if (from[axis].is_partial() && to[axis].is_replicate()) return true;
  }
  return false;
}

}  // namespace

ShardRows::ShardRows(const at::Tensor& local, std::int64_t dim_, const DimCut& cut_)
    : rows(pad_dim(local, dim_, cut_.largest()).movedim(dim_, 0)),
      dim(dim_),
      cut(cut_) {
  rows = rows.contiguous();
}

at::Tensor ShardRows::whole(const at::Tensor& gathered) const {
  return cut.whole(gathered).movedim(0, dim).contiguous();
}

at::Tensor rows_to_scatter(const at::Tensor& local, std::int64_t dim, const DimCut& cut) {
  return cut.padded_parts(local.movedim(dim, 0)).contiguous();
}

at::Tensor from_scattered_rows(const at::Tensor& rows, std::int64_t dim, const DimCut& cut, int rank) {
  return rows.narrow(0, 0, cut.length(rank)).movedim(0, dim);
}

at::Tensor redistribute_local(const at::Tensor& local, at::IntArrayRef global_sizes, at::IntArrayRef global_strides,
                              const Placements& from, const Placements& to, const Mesh& mesh) {
  return from == to ? local : redistribute_step(local, global_sizes, global_strides, from, to, mesh, {});
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
  storage.replace(redistribute_local(local, tensor.sizes(), tensor.strides(), storage.placements(), reduced, storage.mesh()),
                  reduced);
  if (before != nullptr) MeshRuntime::of(storage.mesh()).recompute.add_reduction(tensor, before);
}

at::Tensor read_as(const at::Tensor& tensor, const Placements& to) {
  MeshStorage& storage = storage_of(tensor);
  if (storage.placements() == to) return storage.local();
  reduce_in_storage(tensor, to);
  return redistribute_local(storage.local(), tensor.sizes(), tensor.strides(), storage.placements(), to, storage.mesh());
}

at::Tensor read_for_use(const at::Tensor& tensor, const Placements& to) {
  MeshStorage& storage = storage_of(tensor);
  if (storage.gather_ahead == nullptr) return read_as(tensor, to);
  if (storage.placements() == to) return storage.local();
  return redistribute_step(storage.local(), tensor.sizes(), tensor.strides(), storage.placements(), to, storage.mesh(),
                           {storage.gather_ahead.get(), storage.gathered_at_use});
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
