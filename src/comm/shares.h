// SPDX-License-Identifier: Apache-2.0
// A list of pieces as one message, and the part of it that each rank folds.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>

#include "comm/exchange.h"

namespace tessera::comm::detail {

struct Range {
  std::size_t begin = 0;
  std::size_t end = 0;
};

/// Rank r's share of `bytes`, cut at cache lines.
[[nodiscard]] inline Range share_of(std::size_t bytes, int rank, int size) {
  const auto ranks = static_cast<std::size_t>(size);
  const std::size_t lines = (bytes + kCacheLine - 1) / kCacheLine;
  const std::size_t share = (lines + ranks - 1) / ranks * kCacheLine;
  const std::size_t begin = std::min(bytes, static_cast<std::size_t>(rank) * share);
  return {begin, std::min(bytes, begin + share)};
}

/// Calls visit(piece index, offset in the piece, offset from range.begin, bytes) for the parts of a range of the
/// message.
template <class Visit>
void for_each_part(const Pieces& pieces, Range range, Visit&& visit) {
  std::size_t start = 0;
  for (std::size_t p = 0; p < pieces.size() && start < range.end; ++p) {
    const std::size_t begin = std::max(range.begin, start);
    const std::size_t end = std::min(range.end, start + pieces[p].bytes);
    if (begin < end) visit(p, begin - start, begin - range.begin, end - begin);
    start += pieces[p].bytes;
  }
}

}  // namespace tessera::comm::detail
