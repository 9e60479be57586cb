// SPDX-License-Identifier: Apache-2.0
// Packets: "arrived", or "failed EXIT_CODE KIND\nMESSAGE".
#include "launch/control_channel.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <thread>

#include "launch/numbers.h"
#include "tessera/base/error.h"

namespace tessera::launcher::detail {
namespace {

constexpr std::string_view kArrived = "arrived";
constexpr std::string_view kFailed = "failed ";

bool send_packet(int fd, std::string_view packet) noexcept {
  return ::send(fd, packet.data(), packet.size(), MSG_NOSIGNAL | MSG_DONTWAIT) == static_cast<ssize_t>(packet.size());
}

/// A packet that is not ours is taken as a message without a kind: nothing that a rank says gets lost.
RankMessage parse_packet(std::string_view packet) {
  RankMessage message;
  message.arrived = packet == kArrived;
  message.failure = {.kind = "error", .message = std::string(packet), .exit_code = kExitFailed};
  const auto line_end = packet.find('\n');
  if (packet.starts_with(kFailed) && line_end != std::string_view::npos) {
    const auto head = packet.substr(kFailed.size(), line_end - kFailed.size());
    const auto space = head.find(' ');
    if (const auto code = parse_integer(head.substr(0, space)); code && space != std::string_view::npos) {
      message.failure = {.kind = std::string(head.substr(space + 1)),
                         .message = std::string(packet.substr(line_end + 1)),
                         .exit_code = *code};
    }
  }
  return message;
}

}  // namespace

ControlPair make_control_pair() {
  int ends[2];
  check<Error>(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0,
               "starting ranks: socketpair failed: {}; raise the limit on open files (ulimit -n)",
               std::strerror(errno));
  return {Descriptor(ends[0]), Descriptor(ends[1])};
}

bool is_control_channel(int fd) noexcept {
  int type = 0;
  int domain = 0;
  socklen_t length = sizeof(int);
  return ::getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) == 0 && type == SOCK_SEQPACKET &&
         ::getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) == 0 && domain == AF_UNIX;
}

bool send_arrived(int fd) noexcept { return send_packet(fd, kArrived); }

bool send_failure(int fd, const FailureReport& report) noexcept {
  try {
    return send_packet(fd, fmt::format("{}{} {}\n{}", kFailed, report.exit_code, report.kind,
                                       std::string_view(report.message).substr(0, kMaxMessageBytes)));
  } catch (const std::exception&) {
    return send_packet(fd, "failed 1 out_of_memory\nout of memory while reporting a failure");
  }
}

std::optional<RankMessage> receive(int fd, bool& closed) {
  std::string packet(kMaxMessageBytes + 256, '\0');
  const ssize_t size = ::recv(fd, packet.data(), packet.size(), MSG_DONTWAIT);
  closed = size == 0 || (size < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
  if (size <= 0) {
    return std::nullopt;
  }
  packet.resize(static_cast<std::size_t>(size));
  return parse_packet(packet);
}

void leave_with_launcher(int fd) {
  std::thread([fd] {
    pollfd channel{.fd = fd, .events = POLLRDHUP, .revents = 0};
    while (::poll(&channel, 1, -1) < 0 && errno == EINTR) {
    }
    if ((channel.revents & (POLLHUP | POLLRDHUP)) != 0) {
      ::_exit(kExitFailed);
    }
  }).detach();
}

}  // namespace tessera::launcher::detail
