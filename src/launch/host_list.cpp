// SPDX-License-Identifier: Apache-2.0
// Parsing of Slurm's compressed lists.
#include "launch/host_list.h"

#include "launch/numbers.h"

namespace tessera::launcher::detail {

std::optional<std::string> first_host(std::string_view host_list) {
  const auto bracket = host_list.find('[');
  const auto comma = host_list.find(',');
  if (bracket == std::string_view::npos || comma < bracket) {
    const auto host = host_list.substr(0, comma);
    return host.empty() ? std::nullopt : std::optional(std::string(host));
  }
  const auto close = host_list.find(']', bracket);
  if (close == std::string_view::npos) {
    return std::nullopt;
  }
  const auto ranges = host_list.substr(bracket + 1, close - bracket - 1);
  const auto first = ranges.substr(0, ranges.find_first_of("-,"));
  // "rack[1-2]node[3-4]" has text and more brackets behind the first pair.
  const auto rest = host_list.substr(close + 1);
  std::string host = std::string(host_list.substr(0, bracket)) + std::string(first);
  if (!rest.empty() && rest.front() != ',') {
    const auto tail = first_host(rest);
    if (!tail) {
      return std::nullopt;
    }
    host += *tail;
  }
  return first.empty() ? std::nullopt : std::optional(host);
}

std::optional<int> tasks_on_node(std::string_view tasks_per_node, int node_index) {
  while (!tasks_per_node.empty()) {
    const auto comma = tasks_per_node.find(',');
    auto item = tasks_per_node.substr(0, comma);
    int repeat = 1;
    if (const auto times = item.find("(x"); times != std::string_view::npos && item.back() == ')') {
      const auto count = parse_integer(item.substr(times + 2, item.size() - times - 3));
      if (!count || *count < 1) {
        return std::nullopt;
      }
      repeat = *count;
      item = item.substr(0, times);
    }
    const auto tasks = parse_integer(item);
    if (!tasks) {
      return std::nullopt;
    }
    if (node_index < repeat) {
      return tasks;
    }
    node_index -= repeat;
    tasks_per_node = comma == std::string_view::npos ? std::string_view() : tasks_per_node.substr(comma + 1);
  }
  return std::nullopt;
}

}  // namespace tessera::launcher::detail
