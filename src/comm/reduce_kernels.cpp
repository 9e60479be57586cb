// SPDX-License-Identifier: Apache-2.0
// One vectorised kernel per dtype and reduction, and the table that finds them.
#include "comm/reduce_kernels.h"

#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "comm/clones.h"
#include "comm/fingerprint.h"
#include "comm/fold_operators.h"
#include "tessera/base/error.h"

namespace tessera::comm::detail {

namespace {

// Elements per pass: the accumulators of a block (4 or 8 KiB) stay in the first-level cache.
constexpr std::size_t kBlock = 1024;

// How an element is stored, and the type it is accumulated in.
template <class T>
struct Plain {
  using Stored = T;
  using Sum = T;
  TESSERA_ALWAYS_INLINE static T load(T stored) { return stored; }
  TESSERA_ALWAYS_INLINE static T store(T value) { return value; }
};

struct Bfloat16 {
  using Stored = std::uint16_t;
  using Sum = float;
  TESSERA_ALWAYS_INLINE static float load(std::uint16_t stored) {
    const std::uint32_t bits = static_cast<std::uint32_t>(stored) << 16U;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  TESSERA_ALWAYS_INLINE static std::uint16_t store(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const std::uint32_t to_nearest_even = (bits + 0x7fffU + ((bits >> 16U) & 1U)) >> 16U;
    const bool is_nan = (bits & 0x7fffffffU) > 0x7f800000U;
    return static_cast<std::uint16_t>(is_nan ? 0x7fc0U : to_nearest_even);
  }
};

// Conversions by integer and float arithmetic without branches, so that they vectorise on any machine.
struct Float16 {
  using Stored = std::uint16_t;
  using Sum = float;
  TESSERA_ALWAYS_INLINE static float as_float(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  TESSERA_ALWAYS_INLINE static std::uint32_t as_bits(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
  }
  TESSERA_ALWAYS_INLINE static float load(std::uint16_t stored) {
    const std::uint32_t word = static_cast<std::uint32_t>(stored) << 16U;
    const std::uint32_t sign = word & 0x80000000U;
    const std::uint32_t twice = word + word;
    const float normal = as_float((twice >> 4U) + (0xe0U << 23U)) * as_float(0x07800000U);
    const float denormal = as_float((twice >> 17U) | (126U << 23U)) - 0.5F;
    return as_float(sign | (twice < (1U << 27U) ? as_bits(denormal) : as_bits(normal)));
  }
  TESSERA_ALWAYS_INLINE static std::uint16_t store(float value) {
    const std::uint32_t bits = as_bits(value);
    const std::uint32_t twice = bits + bits;
    const float magnitude = as_float(bits & 0x7fffffffU);
    // Scaling up to infinity and back rounds to half's range; the added bias rounds to half's precision.
    float base = (magnitude * as_float(0x77800000U)) * as_float(0x08800000U);
    const std::uint32_t exponent = twice & 0xff000000U;
    const std::uint32_t bias = exponent < 0x71000000U ? 0x71000000U : exponent;
    base = as_float((bias >> 1U) + 0x07800000U) + base;
    const std::uint32_t rounded = as_bits(base);
    const std::uint32_t unsigned_half = ((rounded >> 13U) & 0x7c00U) + (rounded & 0x0fffU);
    return static_cast<std::uint16_t>(((bits >> 16U) & 0x8000U) | (twice > 0xff000000U ? 0x7e00U : unsigned_half));
  }
};

template <class Element, class Op, bool kAverage>
TESSERA_ALWAYS_INLINE void fold(const std::byte* const* sources, int num_sources, std::byte* const* targets,
                                int num_targets, std::size_t count) {
  using Stored = typename Element::Stored;
  using Accumulator = typename Element::Sum;
  Accumulator sums[kBlock];
  Stored rounded[kBlock];
  for (std::size_t begin = 0; begin < count; begin += kBlock) {
    const std::size_t n = count - begin < kBlock ? count - begin : kBlock;
    const auto* first = reinterpret_cast<const Stored*>(sources[0]) + begin;
    if (num_sources == 1) {
      for (std::size_t i = 0; i < n; ++i) sums[i] = Element::load(first[i]);
    } else {
      const auto* second = reinterpret_cast<const Stored*>(sources[1]) + begin;
      for (std::size_t i = 0; i < n; ++i) sums[i] = Op::apply(Element::load(first[i]), Element::load(second[i]));
    }
    for (int s = 2; s < num_sources; ++s) {
      const auto* source = reinterpret_cast<const Stored*>(sources[s]) + begin;
      for (std::size_t i = 0; i < n; ++i) sums[i] = Op::apply(sums[i], Element::load(source[i]));
    }
    if constexpr (kAverage) {
      const auto divisor = static_cast<Accumulator>(num_sources);
      for (std::size_t i = 0; i < n; ++i) sums[i] = static_cast<Accumulator>(sums[i] / divisor);
    }
    const Stored* result = nullptr;
    if constexpr (std::is_same_v<Stored, Accumulator>) {
      result = sums;
    } else {
      for (std::size_t i = 0; i < n; ++i) rounded[i] = Element::store(sums[i]);
      result = rounded;
    }
    for (int t = 0; t < num_targets; ++t) {
      std::memcpy(reinterpret_cast<Stored*>(targets[t]) + begin, result, n * sizeof(Stored));
    }
  }
}

// Clones must not be templates, hence one named function per dtype and reduction.
#define TESSERA_FOLD(name, element, op, average)                                                        \
  TESSERA_CLONES void name(const std::byte* const* sources, int num_sources, std::byte* const* targets, \
                           int num_targets, std::size_t count) {                                        \
    fold<element, op, average>(sources, num_sources, targets, num_targets, count);                      \
  }
#define TESSERA_FOLDS(suffix, element)               \
  TESSERA_FOLD(sum_##suffix, element, Add, false)    \
  TESSERA_FOLD(average_##suffix, element, Add, true) \
  TESSERA_FOLD(max_##suffix, element, Max, false)    \
  TESSERA_FOLD(min_##suffix, element, Min, false)    \
  TESSERA_FOLD(product_##suffix, element, Multiply, false)

TESSERA_FOLDS(float64, Plain<double>)
TESSERA_FOLDS(float32, Plain<float>)
TESSERA_FOLDS(bfloat16, Bfloat16)
TESSERA_FOLDS(float16, Float16)
TESSERA_FOLDS(int64, Plain<std::int64_t>)
TESSERA_FOLDS(int32, Plain<std::int32_t>)
TESSERA_FOLDS(int8, Plain<std::int8_t>)
TESSERA_FOLDS(uint8, Plain<std::uint8_t>)
#undef TESSERA_FOLDS
#undef TESSERA_FOLD

// In the order of ReduceOp.
using Row = std::array<FoldKernel, 5>;
#define TESSERA_ROW(suffix) \
  Row { sum_##suffix, average_##suffix, max_##suffix, min_##suffix, product_##suffix }

constexpr Row kNoRow{};

Row find_row(c10::ScalarType dtype) {
  switch (dtype) {
    case c10::ScalarType::Double:
      return TESSERA_ROW(float64);
    case c10::ScalarType::Float:
      return TESSERA_ROW(float32);
    case c10::ScalarType::BFloat16:
      return TESSERA_ROW(bfloat16);
    case c10::ScalarType::Half:
      return TESSERA_ROW(float16);
    case c10::ScalarType::Long:
      return TESSERA_ROW(int64);
    case c10::ScalarType::Int:
      return TESSERA_ROW(int32);
    case c10::ScalarType::Char:
      return TESSERA_ROW(int8);
    case c10::ScalarType::Byte:
      return TESSERA_ROW(uint8);
    case c10::ScalarType::Bool:
      return Row{max_uint8, nullptr, max_uint8, min_uint8, min_uint8};
    default:
      return kNoRow;
  }
}
#undef TESSERA_ROW

}  // namespace

FoldKernel find_fold_kernel(c10::ScalarType dtype, ReduceOp op) {
  const FoldKernel kernel = find_row(dtype).at(static_cast<std::size_t>(op));
  check<ShapeError>(kernel != nullptr,
                    "reduction: {} cannot be reduced this way; allowed are float64, float32, bfloat16, float16, int64, "
                    "int32, int8, uint8, and bool without avg; cast the tensor first",
                    dtype_name(dtype));
  return kernel;
}

}  // namespace tessera::comm::detail
