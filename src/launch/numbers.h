// SPDX-License-Identifier: Apache-2.0
// Strict parsing of whole numbers and printing of lists of ranks.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tessera::launcher::detail {

/// The whole text as a decimal int; nothing for "", "4x", " 4", "1e3" or what does not fit.
[[nodiscard]] std::optional<int> parse_integer(std::string_view text);

/// Ascending ranks as "0-2, 5".
[[nodiscard]] std::string format_rank_list(const std::vector<int>& ranks);

/// "rank 2 of 4" or "ranks 0-2 of 4".
[[nodiscard]] std::string format_ranks_of(const std::vector<int>& ranks, int world_size);

}  // namespace tessera::launcher::detail
