// SPDX-License-Identifier: Apache-2.0
// The two flags that launch() takes out of a program's arguments.
#include "launch/command_line.h"

#include <string_view>

#include "tessera/base/error.h"
#include "tessera/launch/run.h"

namespace tessera::launcher::detail {
namespace {

void store_flag(LaunchFlags& flags, const std::string& flag, const std::string& value) {
  const bool is_transport = flag == "--transport";
  check<ConfigError>(is_transport ? !flags.transport : !flags.nproc, "{} is given twice; give it once", flag);
  if (is_transport) {
    flags.transport = value;
  } else {
    flags.nproc = parse_nproc(value, flag);
  }
}

bool is_launch_flag(std::string_view flag) {
  return flag == "--nproc" || flag == "--nproc-per-node" || flag == "--nproc_per_node" || flag == "--transport";
}

}  // namespace

LaunchFlags take_launch_flags(int& argc, char** argv) {
  LaunchFlags flags;
  int kept = 0;
  int next = 0;
  while (next < argc) {
    const std::string_view argument = argv[next];
    if (next > 0 && argument == "--") {
      break;
    }
    const auto equals = argument.find('=');
    const std::string flag(argument.substr(0, equals));
    if (next == 0 || !is_launch_flag(flag)) {
      argv[kept++] = argv[next++];
      continue;
    }
    const bool inline_value = equals != std::string_view::npos;
    check<ConfigError>(inline_value || next + 1 < argc, "{} needs a value", flag);
    store_flag(flags, flag, std::string(inline_value ? argument.substr(equals + 1) : argv[next + 1]));
    next += inline_value ? 1 : 2;
  }
  while (next < argc) {
    argv[kept++] = argv[next++];
  }
  argc = kept;
  argv[argc] = nullptr;
  return flags;
}

}  // namespace tessera::launcher::detail
