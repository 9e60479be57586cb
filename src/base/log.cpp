// SPDX-License-Identifier: Apache-2.0
// The only place that prints: spdlog's thread-safe stderr sink behind two functions.
#include "tessera/base/log.h"

#include <spdlog/logger.h>
#include <spdlog/sinks/stdout_sinks.h>

#include <memory>

namespace tessera::base {
namespace {

constexpr int kNoRank = -1;

// A rank may be a thread, so "who speaks" is a property of the thread; see LogRank.
thread_local int current_rank = kNoRank;

// Made on first use and never destroyed: a message may come from a destructor at exit.
spdlog::logger& logger() {
  static auto* const instance = [] {
    auto* made = new spdlog::logger("tessera", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern("tessera: %v");
    made->flush_on(spdlog::level::info);
    return made;
  }();
  return *instance;
}

}  // namespace

LogRank::LogRank(int rank) : previous_rank_(current_rank) { current_rank = rank; }

LogRank::~LogRank() { current_rank = previous_rank_; }

void write_info(std::string_view message) {
  if (current_rank > 0) return;
  logger().info("{}", message);
}

void write_warning(std::string_view message) {
  if (current_rank == kNoRank) {
    logger().warn("warning: {}", message);
  } else {
    logger().warn("warning: rank {}: {}", current_rank, message);
  }
}

}  // namespace tessera::base
