// SPDX-License-Identifier: Apache-2.0
// "Did you mean" and byte counts.
#include "tessera/base/text.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>

namespace tessera::base {
namespace {

TEST(EditDistance, CountsInsertionsDeletionsAndSubstitutions) {
  EXPECT_EQ(edit_distance("", ""), 0);
  EXPECT_EQ(edit_distance("", "abc"), 3);
  EXPECT_EQ(edit_distance("abc", ""), 3);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3);
  EXPECT_EQ(edit_distance("flaw", "lawn"), 2);
}

TEST(EditDistance, IsSymmetric) {
  EXPECT_EQ(edit_distance("schedule", "shceduel"), edit_distance("shceduel", "schedule"));
}

TEST(NearestWord, FindsTheIntendedAxis) {
  EXPECT_EQ(nearest_word("dp_shrad", {"pp", "dp_replicate", "dp_shard", "cp", "tp", "ep"}), "dp_shard");
}

TEST(NearestWord, TakesTheFirstOfEquallyNearCandidates) { EXPECT_EQ(nearest_word("xp", {"tp", "pp"}), "tp"); }

TEST(NearestWord, IgnoresCaseAndTheKindOfDash) {
  EXPECT_EQ(nearest_word("DP-SHARD", {"DP+SHARD", "dp_shard"}), "dp_shard");
}

TEST(NearestWord, IsEmptyOnlyWithoutCandidates) {
  EXPECT_EQ(nearest_word("anything", {}), "");
  EXPECT_EQ(nearest_word("", {"tp"}), "tp");
}

TEST(HumanBytes, UsesPowersOf1024WithOneDecimal) {
  EXPECT_EQ(human_bytes(0), "0 B");
  EXPECT_EQ(human_bytes(1023), "1023 B");
  EXPECT_EQ(human_bytes(1024), "1.0 KiB");
  EXPECT_EQ(human_bytes(1536), "1.5 KiB");
  EXPECT_EQ(human_bytes(std::int64_t{24} << 30), "24.0 GiB");
}

TEST(HumanBytes, NeverShows1024OfAUnit) { EXPECT_EQ(human_bytes((std::int64_t{1} << 20) - 1), "1.0 MiB"); }

TEST(HumanBytes, CoversTheWholeRange) {
  EXPECT_EQ(human_bytes(std::numeric_limits<std::int64_t>::max()), "8.0 EiB");
  EXPECT_EQ(human_bytes(std::numeric_limits<std::int64_t>::min()), "-8.0 EiB");
  EXPECT_EQ(human_bytes(-2048), "-2.0 KiB");
}

}  // namespace
}  // namespace tessera::base
