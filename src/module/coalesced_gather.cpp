// SPDX-License-Identifier: Apache-2.0
// One flat message per bucket.
#include "module/coalesced_gather.h"

#include <ATen/ops/cat.h>

#include <algorithm>
#include <utility>

namespace tessera::module {
namespace {

/// `rows` [ranks, chunk, ...]: chunks of the first dim of `whole`, the last ones shorter or empty.
void copy_chunks(const at::Tensor& rows, const at::Tensor& whole) {
  const std::int64_t chunk = rows.size(1);
  const std::int64_t full = chunk == 0 ? 0 : whole.size(0) / chunk;
  const std::int64_t rest = whole.size(0) - full * chunk;
  if (full > 0) whole.narrow(0, 0, full * chunk).unflatten(0, {full, chunk}).copy_(rows.narrow(0, 0, full));
  if (rest > 0) whole.narrow(0, full * chunk, rest).copy_(rows.select(0, full).narrow(0, 0, rest));
}

}  // namespace

void CoalescedGather::add(const at::Tensor& shard, const at::Tensor& whole, std::int64_t dim, const Mesh& mesh,
                          int axis) {
  const int ranks = mesh.axis_size(axis);
  Item item{tensor::ShardRows(shard, dim, whole.size(dim), ranks), whole};
  const auto bytes = static_cast<std::int64_t>(item.shard.rows.nbytes()) * ranks;
  Bucket& bucket = bucket_for(whole, mesh, axis);
  if (bucket.bytes + bytes > bucket_bytes_) gather(bucket);
  bucket.items.push_back(std::move(item));
  bucket.bytes += bytes;
}

void CoalescedGather::flush() {
  for (Bucket& bucket : buckets_) gather(bucket);
}

CoalescedGather::Bucket& CoalescedGather::bucket_for(const at::Tensor& whole, const Mesh& mesh, int axis) {
  const auto fits = [&](const Bucket& bucket) {
    if (bucket.axis != axis || !(bucket.mesh == mesh)) return false;
    const at::Tensor& sample = bucket.items.front().whole;
    return sample.scalar_type() == whole.scalar_type() && sample.device() == whole.device();
  };
  std::erase_if(buckets_, [](const Bucket& bucket) { return bucket.items.empty(); });
  const auto found = std::find_if(buckets_.begin(), buckets_.end(), fits);
  return found == buckets_.end() ? buckets_.emplace_back(Bucket{mesh, axis, 0, {}}) : *found;
}

void CoalescedGather::gather(Bucket& bucket) {
  const std::vector<Item> items = std::exchange(bucket.items, {});
  bucket.bytes = 0;
  if (items.empty()) return;
  std::vector<at::Tensor> pieces;
  for (const Item& item : items) pieces.push_back(item.shard.rows.view({-1}));
  const at::Tensor mine = pieces.size() == 1 ? pieces.front() : at::cat(pieces);
  const comm::Communicator& group = bucket.mesh.along(bucket.axis);
  const at::Tensor gathered = group.all_gather(mine).view({group.size(), mine.numel()});
  std::int64_t offset = 0;
  for (const Item& item : items) {
    const at::Tensor& rows = item.shard.rows;
    std::vector<std::int64_t> sizes{group.size()};
    sizes.insert(sizes.end(), rows.sizes().begin(), rows.sizes().end());
    copy_chunks(gathered.narrow(1, offset, rows.numel()).view(sizes), item.whole.movedim(item.shard.dim, 0));
    offset += rows.numel();
  }
}

}  // namespace tessera::module
