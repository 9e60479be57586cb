// SPDX-License-Identifier: Apache-2.0
// Axes, coordinates, groups and placements.
#include <gtest/gtest.h>

#include <ATen/ATen.h>

#include "support/ranks.h"
#include "tessera/base/error.h"
#include "tessera/mesh/mesh.h"

namespace tessera {
namespace {

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "nothing was thrown";
}

TEST(Axes, ParseAndFormatAreInverse) {
  const auto axes = parse_axes("dp_replicate=2,dp_shard=3,tp=4");
  EXPECT_EQ(parse_axes(format_axes(axes)), axes);
}
TEST(Axes, TakeDpForDpReplicate) { EXPECT_EQ(parse_axes("dp=2").front().name, "dp_replicate"); }
TEST(Axes, AreSortedOutermostFirst) {
  EXPECT_EQ(format_axes(resolve_axes(parse_axes("tp=2,dp=3"), 6)), "dp_replicate=3,tp=2");
}
TEST(Axes, GiveMinusOneTheRest) { EXPECT_EQ(format_axes(resolve_axes(parse_axes("dp=-1,tp=2"), 8)), "dp_replicate=4,tp=2"); }
TEST(Axes, RefuseAnUnknownNameAndSuggestTheNearest) {
  EXPECT_NE(message_of([] { (void)parse_axes("ttp=2"); }).find("did you mean \"tp\""), std::string::npos);
}
TEST(Axes, RefuseAProductThatIsNotTheWorldSize) {
  const std::string message = message_of([] { (void)resolve_axes(parse_axes("dp=2,tp=3"), 4); });
  EXPECT_NE(message.find("has 6 ranks, but the job has 4"), std::string::npos) << message;
}
TEST(Axes, RefuseMalformedText) {
  for (const char* text : {"tp", "tp=", "tp=x", "=2", "tp=2,", "tp=0x2", "tp=2;dp=2"}) {
    EXPECT_THROW((void)parse_axes(text), ConfigError) << text;
  }
  EXPECT_THROW((void)resolve_axes(parse_axes("tp=0"), 1), ConfigError);
  EXPECT_THROW((void)resolve_axes(parse_axes("tp=2,tp=2"), 4), ConfigError);
  EXPECT_THROW((void)resolve_axes(parse_axes("tp=-1,dp=-1"), 4), ConfigError);
}
TEST(Mesh, RankAndCoordinatesAreInverse) {
  const auto axes = parse_axes("dp_replicate=2,dp_shard=3,tp=4");
  for (int rank = 0; rank < 24; ++rank) EXPECT_EQ(rank_of(coordinates_of(rank, axes), axes), rank);
}
TEST(Mesh, NeighboursDifferInTheLastAxis) {
  EXPECT_EQ(coordinates_of(1, parse_axes("dp=2,tp=2")), (std::vector<int>{0, 1}));
}
TEST(Mesh, SumsAlongOneAxisOverTheRanksThatDifferInItOn6Ranks) {
  test::on_mesh("dp=2,tp=3", [](const Mesh& mesh) {
    at::Tensor value = at::full({1}, mesh.rank(), at::kLong);
    mesh.along(1).all_reduce(value);
    EXPECT_EQ(value.item<std::int64_t>(), mesh.coordinate(0) == 0 ? 0 + 1 + 2 : 3 + 4 + 5);
    at::Tensor all = at::ones({1}, at::kLong);
    mesh.everyone().all_reduce(all);
    EXPECT_EQ(all.item<std::int64_t>(), 6);
  });
}
TEST(Mesh, GroupsSeveralAxesOn8Ranks) {
  test::on_mesh("dp_replicate=2,dp_shard=2,tp=2", [](const Mesh& mesh) {
    EXPECT_EQ(mesh.across(0b011).size(), 4);
    at::Tensor value = at::full({1}, mesh.rank(), at::kLong);
    mesh.across(0b011).all_reduce(value);
    EXPECT_EQ(value.item<std::int64_t>(), mesh.coordinate(2) == 0 ? 0 + 2 + 4 + 6 : 1 + 3 + 5 + 7);
  });
}
TEST(Mesh, TwoMeshesOfOneWorldAreIndependentOn2Ranks) {
  test::on_ranks(2, [](const auto& world) {
    const Mesh a(world, parse_axes("dp=2"));
    const Mesh b(world, parse_axes("dp=2"));
    at::Tensor x = at::ones({1});
    at::Tensor y = at::ones({1}) * 10;
    a.along(0).all_reduce(x);
    b.along(0).all_reduce(y);
    EXPECT_EQ(x.item<float>(), 2);
    EXPECT_EQ(y.item<float>(), 20);
    EXPECT_FALSE(a == b);
  });
}
TEST(Mesh, ShardsABatchOverTheDataParallelAxes) {
  test::on_mesh("dp_replicate=2,dp_shard=2,tp=2", [](const Mesh& mesh) {
    EXPECT_EQ(mesh.batch_placements(), (Placements{Shard(0), Shard(0), Replicate()}));
  });
}
TEST(Placement, ParseAndFormatAreInverse) {
  for (const Placement& placement : {Replicate(), Shard(0), Shard(3), Shard(0, {.groups = 3, .unit = 64}),
                                     Shard(2, {.groups = 2}), Shard(1, {.unit = 8}), Partial(), Partial(PartialOp::kMax)}) {
    EXPECT_EQ(parse_placement(to_string(placement)), placement);
  }
  EXPECT_EQ(to_string(Shard(0, {.groups = 3, .unit = 64})), "shard(0, groups=3, unit=64)");
  EXPECT_EQ(parse_placement("colwise"), Shard(0));
  EXPECT_EQ(parse_placement("rowwise"), Shard(1));
  EXPECT_EQ(parse_placement("colwise(groups=3, unit=64)"), Shard(0, {.groups = 3, .unit = 64}));
  EXPECT_EQ(parse_placement("rowwise(unit=64)"), Shard(1, {.unit = 64}));
  EXPECT_EQ(parse_placement("shard(1,unit=4,groups=2)"), Shard(1, {.groups = 2, .unit = 4}));
}
TEST(Placement, RefusesUnknownWords) {
  for (const char* text : {"shard", "shard(-1)", "shard(x)", "shard(1", "Shard(0)", "", "shard(0, groups=0)", "shard(0, 3)",
                           "shard(0, groups=2, groups=2)", "shard(groups=3)", "colwise(0)", "rowwise(unit=)", "colwise()"}) {
    EXPECT_THROW((void)parse_placement(text), ConfigError) << text;
  }
}
TEST(ChunkExtent, CoversADimOnceWhateverTheParts) {
  for (std::int64_t size = 0; size < 20; ++size) {
    for (std::int64_t parts = 1; parts < 9; ++parts) {
      std::int64_t next = 0;
      for (std::int64_t index = 0; index < parts; ++index) {
        const Extent extent = chunk_extent(size, parts, index);
        EXPECT_EQ(extent.offset, next);
        next += extent.length;
      }
      EXPECT_EQ(next, size);
    }
  }
}

}  // namespace
}  // namespace tessera
