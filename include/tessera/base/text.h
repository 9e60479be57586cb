// SPDX-License-Identifier: Apache-2.0
// Text for people: the nearest known word, and byte counts with a unit.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tessera::base {

/// Number of single-character insertions, deletions and substitutions that turn `a` into `b`.
///
/// Cost      a.size() * b.size()
/// Source    Wagner and Fischer 1974
[[nodiscard]] int edit_distance(std::string_view a, std::string_view b);

/// The candidate with the smallest edit distance to `word`, for "did you mean" in messages. Upper and lower case count
/// as equal, and so do '-' and '_'; of equally near candidates the first one wins. Empty only if there are none.
[[nodiscard]] std::string nearest_word(std::string_view word, const std::vector<std::string>& candidates);

/// A byte count as people read it: "512 B", "1.5 KiB", "24.0 GiB". One decimal from KiB on; negative counts keep
/// their sign.
///
/// Units     powers of 1024
[[nodiscard]] std::string human_bytes(std::int64_t bytes);

/// A byte count as files and flags have it, exact: "8GiB", "1536KiB", "100B"; the largest unit that divides it.
///
/// Units     powers of 1024, up to TiB
[[nodiscard]] std::string exact_bytes(std::int64_t bytes);

/// The inverse, which also reads fractions ("1.5GiB"); rounded to whole bytes. Nothing if `text` is not a number from 0 and a
/// unit, or is more than an int64 holds.
[[nodiscard]] std::optional<std::int64_t> parse_bytes(std::string_view text);

}  // namespace tessera::base
