// SPDX-License-Identifier: Apache-2.0
// The generator against its published known answers, and its streams against the generator.
#include "tensor/philox.h"

#include <gtest/gtest.h>

#include <vector>

namespace tessera::tensor {
namespace {

struct KnownAnswer {
  PhiloxCounter counter;
  PhiloxKey key;
  std::array<std::uint32_t, 4> words;
};

// The lines "philox4x32 10" of tests/kat_vectors in the Random123 distribution 1.14.
const std::vector<KnownAnswer> kKnownAnswers{
    {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
    {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
     {0xffffffff, 0xffffffff},
     {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
    {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
     {0xa4093822, 0x299f31d0},
     {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
};

TEST(Philox, GivesTheKnownAnswersOfRandom123) {
  for (const KnownAnswer& known : kKnownAnswers) EXPECT_EQ(philox4x32_10(known.counter, known.key), known.words);
}

TEST(PhiloxStream, GivesTheKnownAnswersOfRandom123) {
  // Seed and draw are the key and the upper half of the counter; the block is its lower half.
  for (const KnownAnswer& known : kKnownAnswers) {
    const PhiloxStream stream{known.key[0] | (std::uint64_t{known.key[1]} << 32),
                              known.counter[2] | (std::uint64_t{known.counter[3]} << 32)};
    const std::uint64_t block = known.counter[0] | (std::uint64_t{known.counter[1]} << 32);
    std::array<std::uint32_t, 4> words{};
    // Word indices have 64 bits, so the largest blocks lie beyond every stream.
    if (block > UINT64_MAX / 4) continue;
    stream.fill(4 * block, words);
    EXPECT_EQ(words, known.words);
  }
}

TEST(PhiloxStream, GivesEveryWordWhereverAFillBegins) {
  const PhiloxStream stream{0x0123456789abcdef, 0xfedcba9876543210};
  const std::uint64_t begin = (std::uint64_t{1} << 34) - 150;  // crosses the lower half of the block's counter
  for (std::uint64_t skipped = 0; skipped < 6; ++skipped) {
    std::vector<std::uint32_t> words(300);
    stream.fill(begin + skipped, words);
    for (std::size_t i = 0; i < words.size(); ++i) {
      const std::uint64_t index = begin + skipped + i;
      const std::uint64_t block = index / 4;
      const auto expected = philox4x32_10(
          {static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32), 0x76543210, 0xfedcba98},
          {0x89abcdef, 0x01234567});
      ASSERT_EQ(words[i], expected[index % 4]) << index;
    }
  }
}

}  // namespace
}  // namespace tessera::tensor
