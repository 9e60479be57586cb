// SPDX-License-Identifier: Apache-2.0
// Fingerprints keep everything, and read well.
#include "comm/fingerprint.h"

#include <gtest/gtest.h>

#include <set>

namespace tessera::comm::detail {

namespace {

TEST(Fingerprint, PackAndUnpackAreInverse) {
  for (const std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{4096}, kMaxBytes}) {
    for (const int root : {0, 7, kMaxRoot}) {
      for (const auto dtype : {c10::ScalarType::Byte, c10::ScalarType::BFloat16, c10::ScalarType::Bool}) {
        const Call call{CallKind::kAllToAll, ReduceOp::kProduct, dtype, root, bytes};
        const Call back = unpack(pack(call));
        EXPECT_EQ(back.kind, call.kind);
        EXPECT_EQ(back.op, call.op);
        EXPECT_EQ(back.dtype, call.dtype);
        EXPECT_EQ(back.root, call.root);
        EXPECT_EQ(back.bytes, call.bytes);
      }
    }
  }
}

TEST(Fingerprint, DiffersInEveryField) {
  const Call call{CallKind::kReduce, ReduceOp::kSum, c10::ScalarType::Float, 1, 64};
  std::set<std::uint64_t> seen{pack(call)};
  Call other = call;
  other.kind = CallKind::kBroadcast;
  EXPECT_TRUE(seen.insert(pack(other)).second);
  other = call;
  other.op = ReduceOp::kAvg;
  EXPECT_TRUE(seen.insert(pack(other)).second);
  other = call;
  other.dtype = c10::ScalarType::Int;
  EXPECT_TRUE(seen.insert(pack(other)).second);
  other = call;
  other.root = 2;
  EXPECT_TRUE(seen.insert(pack(other)).second);
  other = call;
  other.bytes = 68;
  EXPECT_TRUE(seen.insert(pack(other)).second);
}

TEST(Fingerprint, IsDescribedInTheWordsOfTheInterface) {
  EXPECT_EQ(describe({CallKind::kAllReduce, ReduceOp::kAvg, c10::ScalarType::BFloat16, 0, 16}),
            "all_reduce(16 bytes, bfloat16, avg)");
  EXPECT_EQ(describe({CallKind::kBroadcast, ReduceOp::kSum, c10::ScalarType::Long, 2, 64}),
            "broadcast(64 bytes, int64, root 2)");
  EXPECT_EQ(describe({.kind = CallKind::kBarrier}), "barrier()");
}

}  // namespace

}  // namespace tessera::comm::detail
