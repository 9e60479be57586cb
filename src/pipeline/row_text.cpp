// SPDX-License-Identifier: Apache-2.0
#include "pipeline/row_text.h"

#include <fmt/format.h>

#include <algorithm>

namespace tessera::pipeline {
namespace {

constexpr std::size_t kAround = 8;

}  // namespace

std::string row_with_arrow(const Schedule& schedule, int rank, std::size_t position) {
  const std::vector<Action>& row = schedule.actions[static_cast<std::size_t>(rank)];
  const std::size_t begin = position > kAround ? position - kAround : 0;
  const std::size_t end = std::min(row.size(), position + kAround + 1);
  std::string line = fmt::format("  rank {}: {}", rank, begin > 0 ? "... " : "");
  std::string arrow;
  for (std::size_t i = begin; i < end; ++i) {
    const std::string token = to_string(row[i]);
    if (i == position) arrow = std::string(line.size(), ' ') + std::string(token.size(), '^');
    line += token + " ";
  }
  if (arrow.empty()) arrow = std::string(line.size(), ' ') + "^";
  line += end < row.size() ? "..." : "";
  line.erase(line.find_last_not_of(' ') + 1);
  return line + "\n" + arrow;
}

}  // namespace tessera::pipeline
