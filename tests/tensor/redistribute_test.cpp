// SPDX-License-Identifier: Apache-2.0
// Redistribution between any two specs, over uneven shards and several axes.
#include <gtest/gtest.h>

#include <ATen/ATen.h>

#include "tessera/base/error.h"

#include "support/ranks.h"
#include "tensor/layout.h"
#include "tensor/redistribute.h"
#include "tessera/tensor/mesh_tensor.h"

namespace tessera {
namespace {

const std::vector<Placement> kChoices{Replicate(), Shard(0), Shard(1), Partial()};

/// Every spec of two dims over `num_axes` axes.
std::vector<Placements> all_specs(int num_axes) {
  std::vector<Placements> specs{Placements::replicated(num_axes)};
  for (int axis = 0; axis < num_axes; ++axis) {
    std::vector<Placements> more;
    for (const Placements& spec : specs) {
      for (const Placement& choice : kChoices) {
        Placements next = spec;
        next[axis] = choice;
        more.push_back(next);
      }
    }
    specs = more;
  }
  return specs;
}

/// The local part of `value` under `spec`; a partial sum is spread as r + 1 shares of unequal weight that add up.
at::Tensor local_part(const at::Tensor& value, const Placements& spec, const Mesh& mesh) {
  at::Tensor part = value;
  for (int axis = spec.size() - 1; axis >= 0; --axis) {
    if (spec[axis].is_shard()) {
      const Extent extent = chunk_extent(part.size(spec[axis].dim), mesh.axis_size(axis), mesh.coordinate(axis));
      part = part.narrow(spec[axis].dim, extent.offset, extent.length);
    } else if (spec[axis].is_partial()) {
      part = mesh.coordinate(axis) == 0 ? part - 2.0 * (mesh.axis_size(axis) - 1) : at::zeros_like(part) + 2.0;
    }
  }
  return part.clone();
}

void expect_every_pair(const std::string& axes, at::IntArrayRef sizes) {
  test::on_mesh(axes, [&](const Mesh& mesh) {
    const at::Tensor value = at::arange(c10::multiply_integers(sizes), at::kDouble).view(sizes);
    for (const Placements& from : all_specs(mesh.num_axes())) {
      for (const Placements& to : all_specs(mesh.num_axes())) {
        if (to.any_partial()) continue;
        const at::Tensor start = from_local(local_part(value, from, mesh), mesh, from, sizes);
        const at::Tensor end = redistribute(start, to);
        ASSERT_EQ(placements(end), to) << describe(start) << " -> " << describe(end);
        ASSERT_TRUE(at::equal(local(end), local_part(value, to, mesh)))
            << describe(start) << " -> " << describe(end) << " on rank " << mesh.rank();
        ASSERT_TRUE(at::equal(full(start), value)) << describe(start);
      }
    }
  });
}

TEST(Redistribute, ReachesEverySpecFromEverySpecOnOneAxis) {
  for (const char* axes : {"dp=2", "dp=3", "dp=4"}) expect_every_pair(axes, {6, 5});
}

TEST(Redistribute, ReachesEverySpecFromEverySpecOnTwoAxes) {
  expect_every_pair("dp=2,tp=2", {5, 7});
  expect_every_pair("dp=2,tp=3", {4, 9});
}

TEST(Redistribute, ReachesEverySpecFromEverySpecOnThreeAxes) {
  expect_every_pair("dp_replicate=2,dp_shard=2,tp=2", {3, 5});
}

TEST(Redistribute, LeavesRanksEmptyWhenThereAreFewerRowsThanRanks) { expect_every_pair("dp=4", {2, 1}); }

TEST(Redistribute, TakesTensorsWithoutElements) { expect_every_pair("dp=3", {0, 4}); }

TEST(Distribute, CutsAsChunkCuts) {
  test::on_mesh("dp=4", [](const Mesh& mesh) {
    const at::Tensor value = at::arange(10, at::kFloat);
    const at::Tensor spread = distribute(value, mesh, {Shard(0)});
    const auto chunks = value.chunk(4);
    EXPECT_TRUE(at::equal(local(spread), chunks[static_cast<std::size_t>(mesh.rank())]));
    EXPECT_EQ(spread.sizes(), value.sizes());
  });
}

TEST(Distribute, SendsTheValueOfRankZeroWhenAsked) {
  test::on_mesh("dp=3", [](const Mesh& mesh) {
    const at::Tensor mine = at::arange(4, at::kDouble) + mesh.rank();
    EXPECT_TRUE(at::equal(full(distribute(mine, mesh, {Shard(0)}, Source::kRankZero)), at::arange(4, at::kDouble)));
  });
}

TEST(Distribute, RefusesAShardOfADimThatTheTensorDoesNotHave) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    EXPECT_THROW((void)distribute(at::arange(4), mesh, {Shard(1)}), ShapeError);
    EXPECT_THROW((void)distribute(at::arange(4), mesh, {Replicate(), Replicate()}), ShapeError);
    EXPECT_THROW((void)distribute(at::arange(4), mesh, {Partial()}), ShapeError);
  });
}

TEST(FromLocal, RefusesAShardOfTheWrongSize) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    EXPECT_THROW((void)from_local(at::arange(3), mesh, {Shard(0)}, {8}), ShapeError);
  });
}

TEST(Redistribute, PassesTheGradientThrough) {
  test::on_mesh("dp=2,tp=2", [](const Mesh& mesh) {
    at::Tensor weight = distribute(at::arange(12, at::kDouble).view({4, 3}), mesh, {Replicate(), Shard(0)});
    weight.requires_grad_();
    const at::Tensor moved = redistribute(weight, {Shard(1), Replicate()});
    (moved * moved).sum().backward();
    EXPECT_TRUE(at::equal(full(weight.grad()), 2 * at::arange(12, at::kDouble).view({4, 3})));
  });
}

TEST(MeshTensor, RefusesToShowItsDataPointer) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const at::Tensor spread = distribute(at::arange(4, at::kFloat), mesh, {Shard(0)});
    EXPECT_ANY_THROW((void)spread.data_ptr());
    EXPECT_ANY_THROW((void)spread.const_data_ptr());
  });
}

TEST(MeshTensor, DescribesItself) {
  test::on_mesh("dp=2,tp=2", [](const Mesh& mesh) {
    const at::Tensor spread = distribute(at::arange(8, at::kFloat).view({4, 2}), mesh, {Replicate(), Shard(0)});
    EXPECT_EQ(describe(spread), "[4, 2] Float on dp_replicate=2,tp=2: replicate, shard(0)");
  });
}

TEST(Partial, IsReducedOnceForAllWhoShareTheStorage) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const at::Tensor partial = from_local(at::arange(4, at::kDouble), mesh, {Partial()}, {4});
    const at::Tensor alias = partial.detach();
    const auto before = mesh.traffic().calls;
    (void)full(partial);
    EXPECT_TRUE(at::equal(full(alias), 2 * at::arange(4, at::kDouble)));
    EXPECT_EQ(mesh.traffic().calls - before, 1);
    EXPECT_TRUE(placements(alias).all_replicate());
  });
}

}  // namespace
}  // namespace tessera
