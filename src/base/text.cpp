// SPDX-License-Identifier: Apache-2.0
// Edit distance in one row, and byte counts with binary units.
#include "tessera/base/text.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <numeric>

namespace tessera::base {
namespace {

constexpr std::array<std::string_view, 5> kExactUnits = {"B", "KiB", "MiB", "GiB", "TiB"};

std::string fold(std::string_view word) {
  std::string folded(word);
  for (char& letter : folded) {
    letter = letter == '_' ? '-' : static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
  }
  return folded;
}

}  // namespace

int edit_distance(std::string_view a, std::string_view b) {
  std::vector<int> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (std::size_t i = 0; i < a.size(); ++i) {
    int diagonal = row[0];
    row[0] = static_cast<int>(i) + 1;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const int substituted = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({substituted, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

std::string nearest_word(std::string_view word, const std::vector<std::string>& candidates) {
  const std::string folded = fold(word);
  const std::string* nearest = nullptr;
  int nearest_distance = 0;
  for (const auto& candidate : candidates) {
    const int distance = edit_distance(folded, fold(candidate));
    if (nearest == nullptr || distance < nearest_distance) {
      nearest = &candidate;
      nearest_distance = distance;
    }
  }
  return nearest == nullptr ? std::string() : *nearest;
}

std::string human_bytes(std::int64_t bytes) {
  constexpr std::array kUnits = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (bytes > -1024 && bytes < 1024) return fmt::format("{} B", bytes);
  double value = static_cast<double>(bytes) / 1024.0;
  std::size_t unit = 0;
  // 1023.95 would be printed as 1024.0, so it already belongs to the next unit.
  while ((value >= 1023.95 || value <= -1023.95) && unit + 1 < kUnits.size()) {
    value /= 1024.0;
    ++unit;
  }
  return fmt::format("{:.1f} {}", value, kUnits[unit]);
}

std::string exact_bytes(std::int64_t bytes) {
  std::size_t unit = 0;
  while (bytes != 0 && bytes % 1024 == 0 && unit + 1 < kExactUnits.size()) {
    bytes /= 1024;
    ++unit;
  }
  return fmt::format("{}{}", bytes, kExactUnits[unit]);
}

std::optional<std::int64_t> parse_bytes(std::string_view text) {
  double number = 0;
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), number, std::chars_format::fixed);
  if (error != std::errc() || !(number >= 0)) return {};
  const std::string_view unit(rest, static_cast<std::size_t>(text.data() + text.size() - rest));
  const auto* const found = std::find(kExactUnits.begin(), kExactUnits.end(), unit);
  if (found == kExactUnits.end()) return {};
  const double bytes = std::round(std::ldexp(number, static_cast<int>(10 * (found - kExactUnits.begin()))));
  if (bytes >= std::ldexp(1.0, 63)) return {};
  return static_cast<std::int64_t>(bytes);
}

}  // namespace tessera::base
