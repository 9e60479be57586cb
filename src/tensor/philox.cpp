// SPDX-License-Identifier: Apache-2.0
// Philox4x32-10, one counter at a time and many abreast.
#include "tensor/philox.h"

#include <algorithm>

#include "comm/clones.h"

namespace tessera::tensor {
namespace {

constexpr std::uint32_t kMultiplier0 = 0xD2511F53;
constexpr std::uint32_t kMultiplier1 = 0xCD9E8D57;
constexpr std::uint32_t kWeyl0 = 0x9E3779B9;
constexpr std::uint32_t kWeyl1 = 0xBB67AE85;
constexpr int kNumRounds = 10;
constexpr std::uint64_t kWords = 4;

/// Counters side by side, so that one instruction does a step of several. With 16 or fewer GCC unrolls instead.
constexpr int kLanes = 32;

TESSERA_ALWAYS_INLINE std::uint32_t low(std::uint64_t value) { return static_cast<std::uint32_t>(value); }
TESSERA_ALWAYS_INLINE std::uint32_t high(std::uint64_t value) { return static_cast<std::uint32_t>(value >> 32); }

TESSERA_ALWAYS_INLINE void round(std::uint32_t& c0, std::uint32_t& c1, std::uint32_t& c2, std::uint32_t& c3,
                                 std::uint32_t k0, std::uint32_t k1) {
  const std::uint64_t product0 = std::uint64_t{kMultiplier0} * c0;
  const std::uint64_t product1 = std::uint64_t{kMultiplier1} * c2;
  c0 = high(product1) ^ c1 ^ k0;
  c2 = high(product0) ^ c3 ^ k1;
  c1 = low(product1);
  c3 = low(product0);
}

PhiloxCounter counter_of(const PhiloxStream& stream, std::uint64_t block) {
  return {low(block), high(block), low(stream.draw), high(stream.draw)};
}

/// The words of `kLanes` consecutive blocks.
TESSERA_CLONES void fill_lanes(const PhiloxStream& stream, std::uint64_t block, std::uint32_t* words) {
  std::uint32_t c0[kLanes];
  std::uint32_t c1[kLanes];
  std::uint32_t c2[kLanes];
  std::uint32_t c3[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    const std::uint64_t index = block + static_cast<std::uint64_t>(lane);
    c0[lane] = low(index);
    c1[lane] = high(index);
    c2[lane] = low(stream.draw);
    c3[lane] = high(stream.draw);
  }
  std::uint32_t k0 = low(stream.seed);
  std::uint32_t k1 = high(stream.seed);
  for (int step = 0; step < kNumRounds; ++step) {
    for (int lane = 0; lane < kLanes; ++lane) round(c0[lane], c1[lane], c2[lane], c3[lane], k0, k1);
    k0 += kWeyl0;
    k1 += kWeyl1;
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    words[4 * lane] = c0[lane];
    words[4 * lane + 1] = c1[lane];
    words[4 * lane + 2] = c2[lane];
    words[4 * lane + 3] = c3[lane];
  }
}

}  // namespace

std::array<std::uint32_t, 4> philox4x32_10(PhiloxCounter counter, PhiloxKey key) noexcept {
  for (int step = 0; step < kNumRounds; ++step) {
    round(counter[0], counter[1], counter[2], counter[3], key[0], key[1]);
    key[0] += kWeyl0;
    key[1] += kWeyl1;
  }
  return counter;
}

void PhiloxStream::fill(std::uint64_t first, std::span<std::uint32_t> words) const noexcept {
  const PhiloxKey key{low(seed), high(seed)};
  std::uint64_t block = first / kWords;
  // A run may begin and end inside a block.
  for (std::uint64_t skipped = first % kWords; !words.empty(); skipped = 0) {
    if (skipped == 0 && words.size() >= kWords * kLanes) {
      fill_lanes(*this, block, words.data());
      words = words.subspan(kWords * kLanes);
      block += kLanes;
      continue;
    }
    const auto bits = philox4x32_10(counter_of(*this, block), key);
    const std::size_t count = std::min<std::size_t>(kWords - skipped, words.size());
    std::copy_n(bits.begin() + static_cast<std::ptrdiff_t>(skipped), count, words.begin());
    words = words.subspan(count);
    ++block;
  }
}

}  // namespace tessera::tensor
