// SPDX-License-Identifier: Apache-2.0
// Who writes what to stderr.
#include "tessera/base/log.h"

#include <gtest/gtest.h>

#include <string>
#include <thread>

namespace tessera::base {
namespace {

template <class Body>
std::string stderr_of(Body body) {
  testing::internal::CaptureStderr();
  body();
  return testing::internal::GetCapturedStderr();
}

TEST(Log, InfoOutsideARankIsWritten) {
  EXPECT_EQ(stderr_of([] { info("{} steps", 3); }), "tessera: 3 steps\n");
}

TEST(Log, InfoComesFromRankZeroOnly) {
  EXPECT_EQ(stderr_of([] {
              for (int rank = 0; rank < 3; ++rank) {
                const LogRank scope(rank);
                info("from {}", rank);
              }
            }),
            "tessera: from 0\n");
}

TEST(Log, WarningsComeFromEveryRankWithItsNumber) {
  EXPECT_EQ(stderr_of([] {
              const LogRank scope(2);
              warn("{} is slow", "gloo");
            }),
            "tessera: warning: rank 2: gloo is slow\n");
}

TEST(Log, RankBelongsToTheThreadAndScopesNest) {
  EXPECT_EQ(stderr_of([] {
              const LogRank outer(1);
              std::thread([] { warn("other thread"); }).join();
              { const LogRank inner(4); }
              warn("back");
            }),
            "tessera: warning: other thread\ntessera: warning: rank 1: back\n");
}

TEST(Log, BracesInAMessageAreText) {
  EXPECT_EQ(stderr_of([] { info("{}", "{not a field}"); }), "tessera: {not a field}\n");
}

}  // namespace
}  // namespace tessera::base
