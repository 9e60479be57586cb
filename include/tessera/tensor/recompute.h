// SPDX-License-Identifier: Apache-2.0
// Recomputation of activations: memory for time.
//
// What autograd saves in forward is dropped when a block of the module is done, and made again, operator by operator,
// when backward reads it. The module stays as it is. Every number is the same, bit for bit: operators run on the same
// shards in the same placements, and random ones draw what they drew before.
//
//   kept always     parameters, what a block was given by the one before, what a later block reads, single numbers,
//                   results of operators that write several arguments (batch norm), and whatever was made without
//                   gradients or by a torch::autograd::Function
//   kFull           everything else is dropped
//   kSelective      as kFull, but results of matrix products with parameters, of convolutions, of fused attention and
//                   of reductions between ranks are kept: what runs again is cheap. Attention in its plain form (with
//                   dropout) runs again as a whole, since its T x T matrices are large.
//   within(bytes)   nothing is dropped until the activations of the blocks that are done take more than that on a rank.
//                   Then, from the first block on, what is cheap to make again goes, and when none of that is left, the
//                   rest. So as little as needed runs again.
//
// A block begins at the first operator that uses one of its parameters together with an activation. The activations of
// the last block are not dropped, since backward begins with them.
//
// A tensor that was dropped is an ordinary tensor: whoever reads it makes it again. On a mesh that is a collective
// call, as backward is. Source: Chen et al. 2016, arXiv:1604.06174; Korthikanti et al. 2022, arXiv:2205.05198,
// section 5.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "tessera/mesh/mesh.h"

namespace tessera {

/// What a plan says about activations: a mode, or a number of bytes.
struct Recompute {
  enum Mode : std::uint8_t { kNone, kSelective, kFull, kWithin };
  constexpr Recompute(Mode which = kNone) noexcept : mode(which) {}  // NOLINT(google-explicit-constructor): a mode is one
  /// Of one module on one rank, its shards counted. The block that runs, and the one that backward makes again, come on
  /// top. Throws ConfigError unless bytes > 0.
  static Recompute within(std::int64_t bytes);

  Mode mode;
  std::int64_t budget_bytes = 0;  ///< kWithin only
  friend bool operator==(const Recompute&, const Recompute&) = default;
};

/// "none", "selective", "full", or a number of bytes with its unit: "8GiB".
[[nodiscard]] std::string to_string(Recompute recompute);
/// The inverse. Units are B, KiB, MiB, GiB and TiB; fractions ("1.5GiB") are allowed. Throws ConfigError naming the word
/// and what is allowed.
[[nodiscard]] Recompute parse_recompute(std::string_view word);

/// What recomputation did on this rank since the mesh was made.
struct RecomputeCounts {
  std::int64_t dropped = 0;    ///< activations
  std::int64_t operators = 0;  ///< that ran again
  friend bool operator==(const RecomputeCounts&, const RecomputeCounts&) = default;
};
[[nodiscard]] RecomputeCounts recompute_counts(const Mesh& mesh);

}  // namespace tessera
