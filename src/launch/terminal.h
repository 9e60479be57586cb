// SPDX-License-Identifier: Apache-2.0
// The last words of a process on stderr, usable when nothing else works any more.
#pragma once

#include <string_view>

namespace tessera::launcher::detail {

/// Writes "tessera: error: MESSAGE\n" in one piece, so that lines of several ranks do not mix.
void print_error(std::string_view message) noexcept;

}  // namespace tessera::launcher::detail
