// SPDX-License-Identifier: Apache-2.0
// Helpers of the process tests: folders for pids, waiting, and running a shell line.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>
#include <vector>

namespace tessera::launcher::test {

/// A fresh folder, removed with its content at the end.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  [[nodiscard]] const std::string& path() const noexcept { return path_; }

 private:
  std::string path_;
};

/// Pids that rank_program left in `folder`.
[[nodiscard]] std::vector<pid_t> pids_in(const std::string& folder);

/// False for processes that are gone or only wait to be reaped.
[[nodiscard]] bool is_alive(pid_t pid);

/// Polls until `condition` holds; false after a time that no healthy machine needs.
[[nodiscard]] bool eventually(const std::function<bool()>& condition);

struct ShellResult {
  int exit_code = 0;
  /// stdout and stderr.
  std::string output{};
};

[[nodiscard]] ShellResult run_shell(const std::string& line);

[[nodiscard]] int count_of(const std::string& text, const std::string& part);

}  // namespace tessera::launcher::test
