// SPDX-License-Identifier: Apache-2.0
// Patterns over the dotted paths of parameters, as pipeline stages are written.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace tessera::module {

/// True if `pattern` names `path` or something above it: "layers.0-4" names "layers.3.weight".
[[nodiscard]] bool names(std::string_view pattern, std::string_view path);

/// What follows the plus of a pattern that says what a stage has too: "+embed.weight" -> "embed.weight".
[[nodiscard]] std::optional<std::string_view> shared_pattern(std::string_view pattern);

}  // namespace tessera::module
