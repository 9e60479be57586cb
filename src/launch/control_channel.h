// SPDX-License-Identifier: Apache-2.0
// Private line between a rank and our launcher: an inherited socket pair that carries one message per packet.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "launch/descriptor.h"
#include "tessera/launch/failure.h"

namespace tessera::launcher::detail {

/// What a rank tells its launcher.
struct RankMessage {
  /// True for "I am here and know the others' meeting place", false for a failure.
  bool arrived = false;
  FailureReport failure;
};

/// Longest failure message that travels; longer ones are cut.
constexpr std::size_t kMaxMessageBytes = 16 * 1024;

struct ControlPair {
  Descriptor launcher_end;
  Descriptor rank_end;
};

/// Both ends are close-on-exec. Throws Error when the system has no descriptors left.
[[nodiscard]] ControlPair make_control_pair();

/// True when `fd` is really a control channel, not a number that some wrapper between us reused.
[[nodiscard]] bool is_control_channel(int fd) noexcept;

/// Never blocks, never raises SIGPIPE. False when the launcher is gone.
bool send_arrived(int fd) noexcept;
bool send_failure(int fd, const FailureReport& report) noexcept;

/// Next message, nothing when there is none yet. Sets `closed` at the end of the line.
[[nodiscard]] std::optional<RankMessage> receive(int fd, bool& closed);

/// Ends this process as soon as the launcher at the other end of `fd` is gone, whatever the process is doing, so that
/// no rank outlives its job even if a wrapper script stands between the two.
void leave_with_launcher(int fd);

}  // namespace tessera::launcher::detail
