// SPDX-License-Identifier: Apache-2.0
// Philox4x32-10: random bits as a pure function of a counter and a key, so that any element's bits can be had alone.
#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace tessera::tensor {

using PhiloxCounter = std::array<std::uint32_t, 4>;
using PhiloxKey = std::array<std::uint32_t, 2>;

/// Source   Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3", doi:10.1145/2063384.2063405
/// Checked  tensor/philox_test, with the known answers of the Random123 distribution
[[nodiscard]] std::array<std::uint32_t, 4> philox4x32_10(PhiloxCounter counter, PhiloxKey key) noexcept;

/// One endless stream of words per (seed, draw): word i is lane i mod 4 of counter {i / 4, draw} (64 bits each, low
/// word first) under key `seed`.
struct PhiloxStream {
  std::uint64_t seed = 0;
  std::uint64_t draw = 0;

  /// words[k] = word first + k.
  void fill(std::uint64_t first, std::span<std::uint32_t> words) const noexcept;
};

}  // namespace tessera::tensor
