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

TEST(ExactBytes, UsesTheLargestUnitThatDivides) {
  EXPECT_EQ(exact_bytes(0), "0B");
  EXPECT_EQ(exact_bytes(1000), "1000B");
  EXPECT_EQ(exact_bytes(std::int64_t{8} << 30), "8GiB");
  EXPECT_EQ(exact_bytes((std::int64_t{8} << 30) + 1024), "8388609KiB");
  EXPECT_EQ(exact_bytes(std::int64_t{1} << 60), "1048576TiB");
}

TEST(ParseBytes, ReadsWhatExactBytesWrote) {
  for (const std::int64_t bytes : {std::int64_t{0}, std::int64_t{1}, std::int64_t{1000}, std::int64_t{1536} << 10,
                                   std::int64_t{8} << 30, std::int64_t{1} << 60}) {
    EXPECT_EQ(parse_bytes(exact_bytes(bytes)), bytes);
  }
  EXPECT_EQ(parse_bytes("1.5GiB"), std::int64_t{3} << 29);
}

TEST(ParseBytes, RefusesOtherUnitsSignsAndNumbersThatDoNotFit) {
  for (const char* text : {"", "8", "GiB", "8GB", "8 GiB", "8gib", "-1KiB", "+1KiB", "nanKiB", "infKiB", "1e3KiB", "0x8KiB",
                           "8388608TiB", "1KiBs"}) {
    EXPECT_FALSE(parse_bytes(text).has_value()) << text;
  }
}

}  // namespace
}  // namespace tessera::base
