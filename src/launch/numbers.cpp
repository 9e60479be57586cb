// SPDX-License-Identifier: Apache-2.0
// Strict parsing of whole numbers and printing of lists of ranks.
#include "launch/numbers.h"

#include <fmt/format.h>

#include <charconv>

namespace tessera::launcher::detail {

std::optional<int> parse_integer(std::string_view text) {
  int value = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (text.empty() || error != std::errc() || stop != end) {
    return std::nullopt;
  }
  return value;
}

std::string format_rank_list(const std::vector<int>& ranks) {
  std::string text;
  for (std::size_t begin = 0; begin < ranks.size();) {
    std::size_t end = begin + 1;
    while (end < ranks.size() && ranks[end] == ranks[end - 1] + 1) {
      ++end;
    }
    text += text.empty() ? "" : ", ";
    text += end - begin == 1 ? fmt::format("{}", ranks[begin]) : fmt::format("{}-{}", ranks[begin], ranks[end - 1]);
    begin = end;
  }
  return text;
}

std::string format_ranks_of(const std::vector<int>& ranks, int world_size) {
  return fmt::format("{} {} of {}", ranks.size() == 1 ? "rank" : "ranks", format_rank_list(ranks), world_size);
}

}  // namespace tessera::launcher::detail
