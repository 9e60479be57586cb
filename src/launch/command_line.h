// SPDX-License-Identifier: Apache-2.0
// The two flags that launch() takes out of a program's arguments.
#pragma once

#include <optional>
#include <string>

namespace tessera::launcher::detail {

struct LaunchFlags {
  std::optional<int> nproc;
  std::optional<std::string> transport;
};

/// Reads and removes --nproc, --nproc-per-node, --nproc_per_node and --transport ("--flag VALUE" and "--flag=VALUE")
/// before a "--". Throws ConfigError for a flag without a value, given twice, or with one that is not allowed.
[[nodiscard]] LaunchFlags take_launch_flags(int& argc, char** argv);

}  // namespace tessera::launcher::detail
