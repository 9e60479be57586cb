// SPDX-License-Identifier: Apache-2.0
// Which output dim of a view a sharded input dim becomes.
#include "rules/view_map.h"

#include <gtest/gtest.h>

namespace tessera::rules {
namespace {

TEST(ViewMap, KeepsADimThatPassesThroughEvenIfCutUnevenly) {
  EXPECT_EQ(map_view_dim({5, 6}, {5, 2, 3}, 0, 2), 0);
  EXPECT_EQ(map_view_dim({5, 6}, {1, 5, 6}, 0, 4), 1);
}
TEST(ViewMap, MergesOnlyTheOutermostDimAndOnlyEvenly) {
  EXPECT_EQ(map_view_dim({4, 6}, {24}, 0, 2), 0);
  EXPECT_EQ(map_view_dim({4, 6}, {24}, 0, 3), -1);
  EXPECT_EQ(map_view_dim({4, 6}, {24}, 1, 2), -1);
}
TEST(ViewMap, SplitsOntoTheOutermostDimIfItDivides) {
  EXPECT_EQ(map_view_dim({4, 12}, {4, 3, 4}, 1, 3), 1);
  EXPECT_EQ(map_view_dim({4, 12}, {4, 3, 4}, 1, 2), -1);
}
TEST(ViewMap, LetsNothingStayWithoutElements) { EXPECT_EQ(map_view_dim({0, 4}, {0, 2, 2}, 1, 2), -1); }
TEST(ViewSizes, InferTheMissingOne) {
  const auto sizes = infer_view_sizes({3, -1}, 12);
  EXPECT_EQ(sizes[1], 4);
}

}  // namespace
}  // namespace tessera::rules
