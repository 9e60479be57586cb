// SPDX-License-Identifier: Apache-2.0
// Logarithm, sine and cosine as plain arithmetic: compilers turn loops over them into vector code, and every machine
// gets the same bits, which no mathematical library promises.
#pragma once

#include <bit>
#include <cstdint>
#include <numbers>
#include <type_traits>

namespace tessera::tensor {

/// How a floating point type is laid out, and how many terms of a series it takes to fill its mantissa.
template <class T>
struct FloatLayout;
template <>
struct FloatLayout<float> {
  using Bits = std::uint32_t;
  static constexpr int kMantissa = 23;
  static constexpr int kLogTerms = 5;
  static constexpr int kTrigTerms = 5;
};
template <>
struct FloatLayout<double> {
  using Bits = std::uint64_t;
  static constexpr int kMantissa = 52;
  static constexpr int kLogTerms = 11;
  static constexpr int kTrigTerms = 9;
};

/// The natural logarithm of 2^-60 < x < 2, to about one unit in the last place of max(|log x|, 1 - x).
template <class T>
[[nodiscard]] inline T log_of(T x) noexcept {
  using Layout = FloatLayout<T>;
  using Bits = typename Layout::Bits;
  constexpr Bits kLow = std::bit_cast<Bits>(static_cast<T>(std::numbers::sqrt2 / 2));
  constexpr Bits kShift = Bits{64} << Layout::kMantissa;
  // x = 2^e m with m between sqrt(1/2) and sqrt(2); e + 64 is never negative.
  const Bits bits = std::bit_cast<Bits>(x);
  const Bits exponent = (bits - kLow + kShift) >> Layout::kMantissa;
  const T m = std::bit_cast<T>(bits - ((exponent << Layout::kMantissa) - kShift));
  // An integer below 2^mantissa in the mantissa of 2^mantissa is that integer added to it.
  constexpr T kBig = static_cast<T>(Bits{1} << Layout::kMantissa);
  const T e = std::bit_cast<T>(exponent | std::bit_cast<Bits>(kBig)) - (kBig + 64);
  // log m = 2 artanh s
  const T s = (m - 1) / (m + 1);
  const T z = s * s;
  T sum = T{1} / (2 * Layout::kLogTerms - 1);
  for (int i = Layout::kLogTerms - 2; i >= 0; --i) sum = sum * z + T{1} / static_cast<T>(2 * i + 1);
  return e * std::numbers::ln2_v<T> + 2 * s * sum;
}

template <class T>
struct SineCosine {
  T sine;
  T cosine;
};

/// Sine and cosine of 2 pi x for 0 <= x <= 1, to about one unit in the last place of 1.
template <class T>
[[nodiscard]] inline SineCosine<T> sine_cosine_of_turn(T x) noexcept {
  using Layout = FloatLayout<T>;
  using Bits = typename Layout::Bits;
  constexpr int kSign = static_cast<int>(8 * sizeof(T)) - 1;
  // The nearest quarter turn, rounded by adding a number so big that only an integer is left of the sum.
  constexpr T kBig = static_cast<T>(Bits{3} << (Layout::kMantissa - 1));
  const T rounded = 4 * x + kBig;
  const Bits quarters = std::bit_cast<Bits>(rounded);
  const T angle = (4 * x - (rounded - kBig)) * (std::numbers::pi_v<T> / 2);
  const T z = angle * angle;
  T sine = 1;
  T cosine = 1;
  for (int i = Layout::kTrigTerms - 1; i > 0; --i) {
    sine = 1 - sine * z / static_cast<T>(2 * i * (2 * i + 1));
    cosine = 1 - cosine * z / static_cast<T>((2 * i - 1) * 2 * i);
  }
  sine *= angle;
  // Odd quarters swap the two, signs follow; in integers, since a choice between numbers would keep loops scalar.
  const Bits swap = Bits{0} - (quarters & 1);
  const Bits a = std::bit_cast<Bits>(sine);
  const Bits b = std::bit_cast<Bits>(cosine);
  const Bits sine_sign = (quarters & 2) << (kSign - 1);
  const Bits cosine_sign = ((quarters + 1) & 2) << (kSign - 1);
  return {std::bit_cast<T>(((a & ~swap) | (b & swap)) ^ sine_sign),
          std::bit_cast<T>(((b & ~swap) | (a & swap)) ^ cosine_sign)};
}

}  // namespace tessera::tensor
