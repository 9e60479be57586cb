// SPDX-License-Identifier: Apache-2.0
// Patterns over dotted paths.
#include "module/stage_patterns.h"

#include <fnmatch.h>

#include <charconv>
#include <limits>
#include <optional>

namespace tessera::module {
namespace {

/// Takes the first part off a dotted path.
std::string_view take_part(std::string_view& path) {
  const std::size_t dot = path.find('.');
  const std::string_view part = path.substr(0, dot);
  path = dot == std::string_view::npos ? std::string_view() : path.substr(dot + 1);
  return part;
}

std::optional<long> number(std::string_view text) {
  long value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = error == std::errc{} && end == text.data() + text.size() && !text.empty();
  return whole ? std::optional(value) : std::nullopt;
}

/// Where the digits at the end of `text` begin.
std::size_t trailing_digits(std::string_view text) { return text.find_last_not_of("0123456789") + 1; }

/// "block2-3" names block2 and block3, "8-" names 8 and all above.
bool range_names(std::string_view pattern, std::string_view part) {
  const std::size_t dash = pattern.rfind('-');
  if (dash == std::string_view::npos) return false;
  const std::string_view before = pattern.substr(0, dash);
  const std::string_view after = pattern.substr(dash + 1);
  const std::size_t begin = trailing_digits(before);
  const auto first = number(before.substr(begin));
  const auto last = after.empty() ? std::optional(std::numeric_limits<long>::max()) : number(after);
  const std::size_t digits = trailing_digits(part);
  const auto value = number(part.substr(digits));
  return first && last && value && before.substr(0, begin) == part.substr(0, digits) && *first <= *value &&
         *value <= *last;
}

}  // namespace

bool names(std::string_view pattern, std::string_view path) {
  while (!pattern.empty()) {
    if (path.empty()) return false;
    const std::string_view wanted = take_part(pattern);
    const std::string_view part = take_part(path);
    if (!range_names(wanted, part) && ::fnmatch(std::string(wanted).c_str(), std::string(part).c_str(), 0) != 0) {
      return false;
    }
  }
  return true;
}

std::optional<std::string_view> shared_pattern(std::string_view pattern) {
  return pattern.starts_with('+') ? std::optional(pattern.substr(1)) : std::nullopt;
}

}  // namespace tessera::module
