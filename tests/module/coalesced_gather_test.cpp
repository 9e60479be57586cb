// SPDX-License-Identifier: Apache-2.0
// Gathering many shards with few messages.
#include "module/coalesced_gather.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "support/ranks.h"
#include "tessera/tensor/mesh_tensor.h"

namespace tessera::module {
namespace {

using at::Tensor;

struct Part {
  std::vector<std::int64_t> sizes;
  std::int64_t dim;
  at::ScalarType dtype = at::kDouble;
};

/// Gathers `parts` over `mesh`, in buckets; returns the messages sent.
std::int64_t gather_parts(const Mesh& mesh, const std::vector<Part>& parts, std::int64_t bucket_bytes) {
  CoalescedGather gathers(bucket_bytes);
  std::vector<std::pair<Tensor, Tensor>> found_and_expected;
  const std::int64_t before = mesh.traffic().calls;
  for (const Part& part : parts) {
    const std::int64_t count = c10::multiply_integers(part.sizes);
    const Tensor whole = torch::arange(count, torch::kDouble).to(part.dtype).view(part.sizes);
    const Tensor shard = local(distribute(whole, mesh, {Shard(part.dim)}));
    found_and_expected.emplace_back(torch::zeros_like(whole), whole);
    gathers.add(shard, found_and_expected.back().first, Shard(part.dim), mesh, 0);
  }
  gathers.flush();
  for (const auto& [found, expected] : found_and_expected) EXPECT_TRUE(at::equal(found, expected)) << expected.sizes();
  return mesh.traffic().calls - before;
}

TEST(CoalescedGather, fills_uneven_transposed_and_empty_parts_with_one_message) {
  for (const char* axes : {"dp_shard=2", "dp_shard=3", "dp_shard=4"}) {
    test::on_mesh(axes, [](const Mesh& mesh) {
      const std::vector<Part> parts{{{7, 3}, 0}, {{2}, 0}, {{3, 9}, 1}, {{0, 4}, 0}, {{2, 5, 3}, 1}, {{12}, 0}};
      EXPECT_EQ(gather_parts(mesh, parts, 1 << 20), 1);
    });
  }
}

TEST(CoalescedGather, sends_a_message_for_each_dtype_and_full_bucket) {
  test::on_mesh("dp_shard=2", [](const Mesh& mesh) {
    EXPECT_EQ(gather_parts(mesh, {{{8}, 0}, {{8}, 0, at::kFloat}, {{8}, 0}, {{8}, 0, at::kFloat}}, 1 << 20), 2);
    const std::vector<Part> parts{{{8}, 0}, {{8}, 0}, {{8}, 0}, {{100}, 0}, {{8}, 0}};
    EXPECT_EQ(gather_parts(mesh, parts, 2 * 8 * 8), 4) << "two, one, the one that is larger than a bucket, the last";
    EXPECT_EQ(gather_parts(mesh, parts, 1), 5);
  });
}

TEST(CoalescedGather, sends_nothing_for_nothing) {
  test::on_mesh("dp_shard=2", [](const Mesh& mesh) { EXPECT_EQ(gather_parts(mesh, {}, 1 << 20), 0); });
}

}  // namespace
}  // namespace tessera::module
