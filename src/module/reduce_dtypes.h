// SPDX-License-Identifier: Apache-2.0
// The dtypes in which gradients may be added up, and their words in a plan.
#pragma once

#include <c10/core/ScalarType.h>

#include <array>
#include <string_view>
#include <utility>

namespace tessera::module {

inline constexpr std::array<std::pair<std::string_view, c10::ScalarType>, 4> kReduceDtypes{
    {{"float64", c10::kDouble}, {"float32", c10::kFloat}, {"bfloat16", c10::kBFloat16}, {"float16", c10::kHalf}}};
inline constexpr const char* kReduceDtypeWords = "float64, float32, bfloat16, float16";

/// Empty if gradients cannot be reduced in it.
[[nodiscard]] constexpr std::string_view word_of_reduce_dtype(c10::ScalarType dtype) {
  for (const auto& [word, known] : kReduceDtypes) {
    if (known == dtype) return word;
  }
  return {};
}

}  // namespace tessera::module
