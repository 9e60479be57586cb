// SPDX-License-Identifier: Apache-2.0
// Name resolution, binding and probing.
#include "launch/sockets.h"

#include <arpa/inet.h>
#include <fmt/ranges.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <set>
#include <thread>

#include "tessera/base/error.h"

namespace tessera::launcher::detail {
namespace {

using Addresses = std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)>;

Addresses look_up(const std::string& host, int port) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  check<ConfigError>(error == 0, "address {}: {}; name a host that this machine can resolve", host,
                     ::gai_strerror(error));
  return {found, &::freeaddrinfo};
}

/// IPv4 first: that is what the store's clients try first.
const addrinfo* preferred(const Addresses& addresses) {
  for (const addrinfo* address = addresses.get(); address != nullptr; address = address->ai_next) {
    if (address->ai_family == AF_INET) {
      return address;
    }
  }
  return addresses.get();
}

Descriptor make_socket(const addrinfo& address) {
  return Descriptor(::socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
}

std::string numeric(const sockaddr* address, socklen_t length) {
  char text[NI_MAXHOST] = {};
  ::getnameinfo(address, length, text, sizeof text, nullptr, 0, NI_NUMERICHOST);
  return text;
}

}  // namespace

Descriptor bind_to(const std::string& host, int port) {
  const Addresses addresses = look_up(host, port);
  const addrinfo& address = *preferred(addresses);
  Descriptor socket = make_socket(address);
  const int on = 1;
  ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  check<ConfigError>(::bind(socket.get(), address.ai_addr, address.ai_addrlen) == 0,
                     "rendezvous: cannot listen on {}:{}: {}; name an address of rank 0's machine in MASTER_ADDR and a "
                     "free port in MASTER_PORT",
                     host, port, std::strerror(errno));
  return socket;
}

int find_free_port() {
  const Descriptor socket = bind_to("127.0.0.1", 0);
  sockaddr_in address{};
  socklen_t length = sizeof address;
  ::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address), &length);
  return ntohs(address.sin_port);
}

std::string resolve(const std::string& host) {
  const Addresses addresses = look_up(host, 0);
  const addrinfo& address = *preferred(addresses);
  return numeric(address.ai_addr, address.ai_addrlen);
}

bool wait_for_listener(const std::string& host, int port, std::chrono::steady_clock::time_point deadline) {
  const Addresses addresses = look_up(host, port);
  for (;;) {
    for (const addrinfo* address = addresses.get(); address != nullptr; address = address->ai_next) {
      const Descriptor socket = make_socket(*address);
      if (::connect(socket.get(), address->ai_addr, address->ai_addrlen) == 0) {
        return true;
      }
    }
    if (std::chrono::steady_clock::now() >= deadline) {
      return false;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
}

std::string address_of_interface(const std::string& name) {
  ifaddrs* first = nullptr;
  check<Error>(::getifaddrs(&first) == 0, "network interface {}: {}", name, std::strerror(errno));
  const std::unique_ptr<ifaddrs, decltype(&::freeifaddrs)> interfaces(first, &::freeifaddrs);
  std::set<std::string> names;
  for (const ifaddrs* entry = first; entry != nullptr; entry = entry->ifa_next) {
    if (entry->ifa_addr != nullptr && entry->ifa_addr->sa_family == AF_INET) {
      if (name == entry->ifa_name) {
        return numeric(entry->ifa_addr, sizeof(sockaddr_in));
      }
      names.insert(entry->ifa_name);
    }
  }
  throw ConfigError(fmt::format("GLOO_SOCKET_IFNAME={} is not an interface with an IPv4 address (allowed: {})", name,
                                fmt::join(names, ", ")));
}

}  // namespace tessera::launcher::detail
