// SPDX-License-Identifier: Apache-2.0
// Which output dim of a view a sharded input dim becomes.
#include "rules/view_map.h"

#include <gtest/gtest.h>

namespace tessera::rules {
namespace {

TEST(ViewMap, KnowsADimThatPassesThrough) {
  EXPECT_EQ(passed_through({5, 6}, {5, 2, 3}, 0), 0);
  EXPECT_EQ(passed_through({5, 6}, {1, 5, 6}, 0), 1);
  EXPECT_EQ(passed_through({5, 6}, {5, 2, 3}, 1), -1);
  EXPECT_EQ(passed_through({0, 4}, {0, 2, 2}, 0), -1);
}
TEST(ViewMap, MergesTheOutermostDimAndCutsInUnitsWhereItIsUneven) {
  EXPECT_EQ(map_view_shard({4, 6}, {24}, Shard(0), 2), Shard(0));
  EXPECT_EQ(map_view_shard({4, 6}, {24}, Shard(0), 3), Shard(0, {.unit = 12}));
  EXPECT_EQ(map_view_shard({24}, {4, 6}, Shard(0, {.unit = 12}), 3), Shard(0));
  EXPECT_EQ(map_view_shard({5, 6}, {30}, Shard(0), 4), Shard(0, {.unit = 12}));
}
TEST(ViewMap, SplitsOntoTheDimsBetweenWhichTheCutsFall) {
  EXPECT_EQ(map_view_shard({4, 12}, {4, 3, 4}, Shard(1), 3), Shard(1));
  EXPECT_EQ(map_view_shard({4, 12}, {4, 3, 4}, Shard(1), 2), std::nullopt);
  EXPECT_EQ(map_view_shard({4, 12}, {4, 3, 4}, Shard(1, {.groups = 3}), 2), Shard(2));
  EXPECT_EQ(map_view_shard({4, 12}, {4, 3, 4}, Shard(1, {.groups = 6}), 2), Shard(2, {.groups = 2}));
  EXPECT_EQ(map_view_shard({24}, {3, 4, 2}, Shard(0, {.groups = 3, .unit = 4}), 2), Shard(1));
}
TEST(ViewMap, MergesAnInnerDimIntoGroups) {
  EXPECT_EQ(map_view_shard({4, 3, 4, 2}, {4, 24}, Shard(2), 2), Shard(1, {.groups = 3}));
  EXPECT_EQ(map_view_shard({4, 3, 4, 2}, {4, 24}, Shard(2), 3), Shard(1, {.groups = 3, .unit = 4}));
  EXPECT_EQ(map_view_shard({2, 4, 6, 3}, {8, 6, 3}, Shard(1), 2), Shard(0, {.groups = 2}));
}
TEST(ViewMap, LeavesRowsOfAProductWholeRatherThanInterleaved) {
  EXPECT_EQ(map_view_shard({2, 4, 6}, {8, 6}, Shard(1), 2), std::nullopt);
}
TEST(ViewMap, LetsNothingStayWithoutElements) {
  EXPECT_EQ(map_view_shard({0, 4}, {0, 2, 2}, Shard(1), 2), std::nullopt);
}
TEST(ViewSizes, InferTheMissingOne) {
  const auto sizes = infer_view_sizes({3, -1}, 12);
  EXPECT_EQ(sizes[1], 4);
}

}  // namespace
}  // namespace tessera::rules
