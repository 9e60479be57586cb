// SPDX-License-Identifier: Apache-2.0
// The exception family and check().
#include "tessera/base/error.h"

#include <gtest/gtest.h>

#include <string>

namespace tessera {
namespace {

TEST(Check, LetsAHoldingConditionPass) { EXPECT_NO_THROW(check<ShapeError>(true, "never formatted {}", 1)); }

TEST(Check, ThrowsTheNamedKindWithTheFormattedMessage) {
  try {
    check<ShapeError>(false, "dim 0 is {}, not a multiple of {}", 1023, 2);
    FAIL() << "a violated check did not throw";
  } catch (const ShapeError& error) {
    EXPECT_STREQ(error.what(), "dim 0 is 1023, not a multiple of 2");
    EXPECT_STREQ(error.kind(), "shape");
  }
}

TEST(Error, CatchesTheWholeFamilyAndKeepsTheKind) {
  const auto kind_of = [](auto thrower) {
    try {
      thrower();
    } catch (const Error& error) {
      return std::string(error.kind());
    }
    return std::string("nothing");
  };
  EXPECT_EQ(kind_of([] { throw ConfigError("x"); }), "config");
  EXPECT_EQ(kind_of([] { throw CommunicationError("x"); }), "communication");
  EXPECT_EQ(kind_of([] { throw FileError("x"); }), "file");
  EXPECT_EQ(kind_of([] { throw Error("x"); }), "error");
}

}  // namespace
}  // namespace tessera
