// SPDX-License-Identifier: Apache-2.0
// The few TCP questions of the rendezvous: which port is free, is the host there, bind to this address only.
#pragma once

#include <chrono>
#include <string>

#include "launch/descriptor.h"

namespace tessera::launcher::detail {

/// A port of 127.0.0.1 that nobody listens on at this moment.
[[nodiscard]] int find_free_port();

/// A socket bound to `host`:`port` and to no other interface; port 0 for any. Nothing listens on it yet.
/// Throws  ConfigError when the name is unknown, the address is not of this machine or the port is taken.
[[nodiscard]] Descriptor bind_to(const std::string& host, int port);

/// Numeric form of `host`, IPv4 first. Throws ConfigError when the name cannot be resolved.
[[nodiscard]] std::string resolve(const std::string& host);

/// Waits until `host`:`port` accepts connections; false at the deadline.
[[nodiscard]] bool wait_for_listener(const std::string& host, int port, std::chrono::steady_clock::time_point deadline);

/// Address of a network interface such as "eth0". Throws ConfigError listing the interfaces when there is none.
[[nodiscard]] std::string address_of_interface(const std::string& name);

}  // namespace tessera::launcher::detail
