// SPDX-License-Identifier: Apache-2.0
// What a reduction does with two elements, on CPUs and on GPUs.
#pragma once

#include <cstdint>
#include <type_traits>

#include "comm/clones.h"

namespace tessera::comm::detail {

// Integers wrap around. constexpr, so that nvcc takes these functions into kernels (--expt-relaxed-constexpr).
struct Add {
  template <class T>
  TESSERA_ALWAYS_INLINE static constexpr T apply(T a, T b) {
    if constexpr (std::is_integral_v<T>) {
      using U = std::make_unsigned_t<T>;
      return static_cast<T>(static_cast<U>(static_cast<U>(a) + static_cast<U>(b)));
    } else {
      return a + b;
    }
  }
};
struct Multiply {
  template <class T>
  TESSERA_ALWAYS_INLINE static constexpr T apply(T a, T b) {
    if constexpr (std::is_integral_v<T>) {
      return static_cast<T>(static_cast<std::uint64_t>(a) * static_cast<std::uint64_t>(b));
    } else {
      return a * b;
    }
  }
};
// A NaN on any rank is the result, as in at::max and at::min.
struct Max {
  template <class T>
  TESSERA_ALWAYS_INLINE static constexpr T apply(T a, T b) {
    return (a > b || a != a) ? a : b;
  }
};
struct Min {
  template <class T>
  TESSERA_ALWAYS_INLINE static constexpr T apply(T a, T b) {
    return (a < b || a != a) ? a : b;
  }
};

}  // namespace tessera::comm::detail
