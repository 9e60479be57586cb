// SPDX-License-Identifier: Apache-2.0
// Messages for people, on stderr. Nothing else in the library prints.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>
#include <utility>

namespace tessera::base {

/// While it lives, messages of the calling thread come from `rank`: info is written by rank 0 only, warnings by every
/// rank with its number in front. Ranks may be threads of one process, so the rank belongs to the thread; a thread
/// outside any scope speaks for the whole process. Scopes nest.
class LogRank {
 public:
  explicit LogRank(int rank);
  ~LogRank();
  LogRank(const LogRank&) = delete;
  LogRank& operator=(const LogRank&) = delete;

 private:
  int previous_rank_;
};

/// Writes one line to stderr. Threads: safe from any; lines do not mix. Prefer info() and warn().
void write_info(std::string_view message);
void write_warning(std::string_view message);

/// Progress that the user may want to know; `tessera: MESSAGE`, from rank 0 or from outside a rank.
template <class... Args>
void info(fmt::format_string<Args...> format, Args&&... args) {
  write_info(fmt::format(format, std::forward<Args>(args)...));
}

/// Something that the user should act on; `tessera: warning: rank 3: MESSAGE`.
template <class... Args>
void warn(fmt::format_string<Args...> format, Args&&... args) {
  write_warning(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace tessera::base
