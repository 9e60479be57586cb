// SPDX-License-Identifier: Apache-2.0
// What a rank says about the collective it enters, in 64 bits that can be read back into words.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "tessera/comm/communicator.h"

namespace tessera::comm::detail {

enum class CallKind : std::uint8_t {
  kNone,
  kBarrier,
  kAllReduce,
  kAllReduceCoalesced,
  kReduce,
  kBroadcast,
  kAllGather,
  kGather,
  kScatter,
  kReduceScatter,
  kAllToAll,
};

/// The largest number of ranks and of bytes that a fingerprint can name.
inline constexpr int kMaxRoot = (1 << 11) - 1;
inline constexpr std::size_t kMaxBytes = (std::size_t{1} << 40) - 1;

/// One collective as its members must agree on it. `bytes` is zero where ranks may differ (all-to-all).
struct Call {
  CallKind kind = CallKind::kNone;
  ReduceOp op = ReduceOp::kSum;
  c10::ScalarType dtype = c10::ScalarType::Byte;
  int root = 0;
  std::size_t bytes = 0;
};

/// Packs without loss; equal calls have equal fingerprints and different ones different fingerprints.
[[nodiscard]] std::uint64_t pack(const Call& call);
[[nodiscard]] Call unpack(std::uint64_t fingerprint);

/// For messages: "all_reduce(16384 bytes, float32, sum)", "broadcast(64 bytes, int64, root 2)".
[[nodiscard]] std::string describe(const Call& call);
/// "float32", "bfloat16", "int64".
[[nodiscard]] std::string dtype_name(c10::ScalarType dtype);

}  // namespace tessera::comm::detail
