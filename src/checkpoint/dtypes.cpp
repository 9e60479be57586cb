// SPDX-License-Identifier: Apache-2.0
// The table of dtypes in weights files.
#include "checkpoint/dtypes.h"

#include <fmt/format.h>

#include <array>
#include <utility>

namespace tessera::checkpoint {
namespace {

constexpr std::array<std::pair<std::string_view, c10::ScalarType>, 12> kDtypes = {{
    {"F64", c10::ScalarType::Double},
    {"F32", c10::ScalarType::Float},
    {"BF16", c10::ScalarType::BFloat16},
    {"F16", c10::ScalarType::Half},
    {"I64", c10::ScalarType::Long},
    {"I32", c10::ScalarType::Int},
    {"I16", c10::ScalarType::Short},
    {"I8", c10::ScalarType::Char},
    {"F8_E4M3", c10::ScalarType::Float8_e4m3fn},
    {"F8_E5M2", c10::ScalarType::Float8_e5m2},
    {"U8", c10::ScalarType::Byte},
    {"BOOL", c10::ScalarType::Bool},
}};

}  // namespace

std::optional<c10::ScalarType> parse_dtype(std::string_view name) {
  for (const auto& [spelling, dtype] : kDtypes) {
    if (spelling == name) return dtype;
  }
  return std::nullopt;
}

std::string_view dtype_name(c10::ScalarType dtype) {
  for (const auto& [spelling, known] : kDtypes) {
    if (known == dtype) return spelling;
  }
  return {};
}

std::string all_dtype_names() {
  std::string names;
  for (const auto& [spelling, dtype] : kDtypes) names += fmt::format("{}{}", names.empty() ? "" : ", ", spelling);
  return names;
}

std::string printable(std::string_view text) {
  constexpr std::size_t kMaxBytes = 100;
  std::string result;
  for (const char character : text.substr(0, kMaxBytes)) {
    const auto byte = static_cast<unsigned char>(character);
    if (byte < 0x20 || byte == 0x7F) {
      result += fmt::format("\\x{:02x}", byte);
    } else {
      result += character;
    }
  }
  return text.size() > kMaxBytes ? result + "..." : result;
}

}  // namespace tessera::checkpoint
