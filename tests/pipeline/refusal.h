// SPDX-License-Identifier: Apache-2.0
// The message of a refusal.
#pragma once

#include <string>

#include "tessera/base/error.h"

namespace tessera::pipeline::test {

/// What the ConfigError of `call` says.
template <class Call>
std::string message_of(const Call& call) {
  try {
    call();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "nothing was thrown";
}

}  // namespace tessera::pipeline::test
