// SPDX-License-Identifier: Apache-2.0
// The last words of a process on stderr.
#include "launch/terminal.h"

#include <sys/uio.h>
#include <unistd.h>

namespace tessera::launcher::detail {
namespace {

/// writev does not write; the cast only satisfies its C signature.
iovec piece(std::string_view text) noexcept { return {const_cast<char*>(text.data()), text.size()}; }

}  // namespace

void print_error(std::string_view message) noexcept {
  const iovec pieces[] = {piece("tessera: error: "), piece(message), piece("\n")};
  // Nobody is left to tell if stderr is gone.
  [[maybe_unused]] const auto written = ::writev(STDERR_FILENO, pieces, 3);
}

}  // namespace tessera::launcher::detail
