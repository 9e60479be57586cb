// SPDX-License-Identifier: Apache-2.0
// The only place that prints: whole lines to stderr, each in one call so that threads do not mix them.
#include "tessera/base/log.h"

#include <cstdio>

namespace tessera::base {
namespace {

constexpr int kNoRank = -1;

// A rank may be a thread, so "who speaks" is a property of the thread; see LogRank.
thread_local int current_rank = kNoRank;

void write_line(const std::string& line) { std::fwrite(line.data(), 1, line.size(), stderr); }

}  // namespace

LogRank::LogRank(int rank) : previous_rank_(current_rank) { current_rank = rank; }

LogRank::~LogRank() { current_rank = previous_rank_; }

void write_info(std::string_view message) {
  if (current_rank > 0) return;
  write_line(fmt::format("tessera: {}\n", message));
}

void write_warning(std::string_view message) {
  if (current_rank == kNoRank) {
    write_line(fmt::format("tessera: warning: {}\n", message));
  } else {
    write_line(fmt::format("tessera: warning: rank {}: {}\n", current_rank, message));
  }
}

}  // namespace tessera::base
