// SPDX-License-Identifier: Apache-2.0
// The two compressed notations of Slurm that matter here: host lists and tasks per node.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace tessera::launcher::detail {

/// First host of a list such as "node[03-05,9],gpu1" -> "node03"; nothing when malformed.
[[nodiscard]] std::optional<std::string> first_host(std::string_view host_list);

/// Tasks on node `node_index` of a list such as "4(x2),3" -> 4, 4, 3; nothing when malformed or out of range.
[[nodiscard]] std::optional<int> tasks_on_node(std::string_view tasks_per_node, int node_index);

}  // namespace tessera::launcher::detail
