// SPDX-License-Identifier: Apache-2.0
// Learning the order of gathers, and following it.
#include "tensor/gather_ahead.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <utility>

namespace tessera::tensor {
namespace {

/// A program that never goes backward must not grow without bound; what is beyond is gathered at use.
constexpr std::size_t kMaxUses = 1 << 16;

}  // namespace

GatherAhead::Use::Use(const at::Tensor& shard, std::int64_t dim_, const DimCut& cut_, const Mesh& mesh, int axis_)
    : memory(shard.storage().getWeakStorageImpl()),
      options(shard.options()),
      sizes(shard.sizes().vec()),
      strides(shard.strides().vec()),
      offset(shard.storage_offset()),
      dim(dim_),
      cut(cut_),
      axis(axis_),
      group(mesh.along(axis_)) {}

bool GatherAhead::Use::operator==(const Use& other) const {
  return memory._unsafe_get_target() == other.memory._unsafe_get_target() && offset == other.offset &&
         dim == other.dim && cut == other.cut && axis == other.axis && sizes == other.sizes &&
         strides == other.strides && options.dtype() == other.options.dtype();
}

bool GatherAhead::Use::is_of(const at::Tensor& tensor) const {
  return memory._unsafe_get_target() == tensor.storage().unsafeGetStorageImpl();
}

at::Tensor GatherAhead::Use::shard() const {
  const c10::intrusive_ptr<c10::StorageImpl> alive = memory.lock();
  if (alive == nullptr) return {};
  at::Tensor tensor = at::empty({0}, options);
  return tensor.set_(c10::Storage(alive), offset, sizes, strides);
}

std::int64_t GatherAhead::Use::whole_bytes() const {
  std::int64_t elements = cut.largest() * cut.ranks();
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (static_cast<std::int64_t>(i) != dim) elements *= sizes[i];
  }
  return elements * static_cast<std::int64_t>(options.dtype().itemsize());
}

at::Tensor GatherAhead::gather(const at::Tensor& shard, std::int64_t dim, const DimCut& cut, const Mesh& mesh,
                               int axis) {
  const Use use(shard, dim, cut, mesh, axis);
  follow(use);
  at::Tensor whole = take(use);
  if (!whole.defined()) {
    const ShardRows rows(shard, dim, cut);
    whole = rows.whole(use.group.all_gather(rows.rows));
  }
  start_next();
  return whole;
}

void GatherAhead::follow(const Use& use) {
  if (follows_ && next_ < order_.size() && order_[next_] == use) {
    ++next_;
  } else if (follows_ && order_.front() == use) {
    drop_if([](const Started&) { return true; });
    recording_.clear();
    next_ = 1;
    start_ = 1;
  } else {
    follows_ = false;
  }
  if (recording_.size() < kMaxUses) recording_.push_back(use);
}

at::Tensor GatherAhead::take(const Use& use) {
  const auto found =
      std::find_if(started_.begin(), started_.end(), [&](const Started& started) { return started.use == use; });
  if (found == started_.end()) return {};
  Started started = std::move(*found);
  started_.erase(found);
  started_bytes_ -= use.whole_bytes();
  started.pending.wait();
  return started.rows.whole(started.gathered);
}

void GatherAhead::start_next() {
  if (!follows_) return;
  for (start_ = std::max(start_, next_); start_ < order_.size(); ++start_) {
    const Use& use = order_[start_];
    if (started_bytes_ + use.whole_bytes() > window_bytes_) return;
    const at::Tensor shard = use.shard();
    if (!shard.defined()) return;
    ShardRows rows(shard, use.dim, use.cut);
    std::vector<std::int64_t> sizes = rows.rows.sizes().vec();
    sizes[0] *= use.group.size();
    at::Tensor gathered = at::empty(sizes, rows.rows.options());
    comm::Pending pending = use.group.post_all_gather(rows.rows, gathered);
    started_.push_back({use, std::move(rows), std::move(gathered), std::move(pending)});
    started_bytes_ += use.whole_bytes();
  }
}

/// Waits first: all ranks have started these gathers, and memory that is being filled must not be freed.
void GatherAhead::drop_if(const std::function<bool(const Started&)>& unwanted) {
  for (Started& started : started_) {
    if (!unwanted(started)) continue;
    started.pending.wait();
    started_bytes_ -= started.use.whole_bytes();
  }
  std::erase_if(started_, unwanted);
}

void GatherAhead::forget(const at::Tensor& shard) {
  if (shard.is_meta()) return;
  drop_if([&](const Started& started) { return started.use.is_of(shard); });
}

void GatherAhead::end_step() {
  drop_if([](const Started&) { return true; });
  order_ = std::exchange(recording_, {});
  follows_ = !order_.empty();
  next_ = 0;
  start_ = 0;
}

void forget_gathered(const at::Tensor& tensor) {
  MeshStorage& storage = storage_of(tensor);
  if (storage.gather_ahead != nullptr) storage.gather_ahead->forget(storage.local());
}

}  // namespace tessera::tensor
