// SPDX-License-Identifier: Apache-2.0
// Shards of many tensors become whole with one message for as many as fit into a bucket.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "tensor/redistribute.h"
#include "tessera/mesh/mesh.h"

namespace tessera::module {

/// Collects shards that are to be gathered, and gathers those of one axis, dtype and device together.
///
/// Memory    a bucket, gathered, or the largest tensor. 4 MiB: messages of small tensors are saved, and what is copied
/// is
///           still in cache; large tensors travel alone.
/// Order     collective: every rank along an axis adds the same tensors in the same order
class CoalescedGather {
 public:
  explicit CoalescedGather(std::int64_t bucket_bytes = std::int64_t{4} << 20) : bucket_bytes_(bucket_bytes) {}

  /// `whole`, memory of this rank, becomes what the ranks along `axis` have, placed as `placement` says: this one's
  /// part is `shard`. It is written in flush() at the latest.
  void add(const at::Tensor& shard, const at::Tensor& whole, const Placement& placement, const Mesh& mesh, int axis);
  void flush();

 private:
  struct Item {
    tensor::ShardRows shard;
    at::Tensor whole;
  };
  struct Bucket {
    Mesh mesh;
    int axis = 0;
    std::int64_t bytes = 0;
    std::vector<Item> items;
  };

  [[nodiscard]] Bucket& bucket_for(const at::Tensor& whole, const Mesh& mesh, int axis);
  static void gather(Bucket& bucket);

  std::int64_t bucket_bytes_;
  std::vector<Bucket> buckets_;
};

}  // namespace tessera::module
