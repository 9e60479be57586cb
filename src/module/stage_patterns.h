// SPDX-License-Identifier: Apache-2.0
// Patterns over the dotted paths of parameters, as pipeline stages are written.
#pragma once

#include <string>
#include <string_view>

namespace tessera::module {

/// True if `pattern` names `path` or something above it: "layers.0-4" names "layers.3.weight".
[[nodiscard]] bool names(std::string_view pattern, std::string_view path);

}  // namespace tessera::module
