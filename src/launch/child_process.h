// SPDX-License-Identifier: Apache-2.0
// One child process: started safely from a process with threads, watched, and never left behind.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "launch/descriptor.h"

namespace tessera::launcher::detail {

/// How a process ended.
struct ProcessEnd {
  int exit_code = 0;
  /// Non-zero when a signal ended it; exit_code is then meaningless.
  int signal = 0;

  [[nodiscard]] bool success() const noexcept { return exit_code == 0 && signal == 0; }
};

struct SpawnRequest {
  /// Path of the executable file.
  std::string program;
  /// argv, with the name that the program sees first.
  std::vector<std::string> arguments;
  /// Complete environment as NAME=VALUE.
  std::vector<std::string> environment;
  /// Descriptors that the program inherits under the same numbers.
  std::vector<int> inherited;
};

/// A child in a session of its own (so Ctrl-C reaches it only through its parent), which the kernel kills when the
/// thread that started it ends. Destroying it kills the session and reaps the child.
class ChildProcess {
 public:
  ChildProcess() = default;
  ~ChildProcess();
  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&& other) noexcept;

  [[nodiscard]] pid_t pid() const noexcept { return pid_; }
  /// Readable as soon as the child ends; -1 on kernels without pidfd.
  [[nodiscard]] int end_fd() const noexcept { return pidfd_.get(); }
  /// How the child ended, or nothing while it runs. Does not reap: the pid stays ours until destruction.
  [[nodiscard]] std::optional<ProcessEnd> poll_end();
  /// Sends a signal to the child and what it started in its session.
  void signal_session(int signal) noexcept;

 private:
  friend ChildProcess spawn(const SpawnRequest& request);

  pid_t pid_ = -1;
  Descriptor pidfd_;
};

/// Throws  ConfigError when the program cannot be executed; Error when the system is out of processes.
[[nodiscard]] ChildProcess spawn(const SpawnRequest& request);

/// Path of the executable that a shell would start for `name`. Throws ConfigError when there is none.
[[nodiscard]] std::string find_program(const std::string& name, const std::string& search_path);

/// "SIGKILL", or "signal 42".
[[nodiscard]] std::string signal_name(int signal);

}  // namespace tessera::launcher::detail
