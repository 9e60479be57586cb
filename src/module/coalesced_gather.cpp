// SPDX-License-Identifier: Apache-2.0
// One flat message per bucket.
#include "module/coalesced_gather.h"

#include <ATen/ops/cat.h>

#include <algorithm>
#include <utility>

namespace tessera::module {

void CoalescedGather::add(const at::Tensor& shard, const at::Tensor& whole, const Placement& placement,
                          const Mesh& mesh, int axis) {
  const int ranks = mesh.axis_size(axis);
  Item item{tensor::ShardRows(shard, placement.dim, {whole.size(placement.dim), placement.cut, ranks}), whole};
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
    for (int rank = 0; rank < group.size(); ++rank) {
      const at::Tensor part = gathered.select(0, rank).narrow(0, offset, rows.numel()).view(rows.sizes());
      item.shard.cut.copy_part(part, rank, item.whole.movedim(item.shard.dim, 0));
    }
    offset += rows.numel();
  }
}

}  // namespace tessera::module
