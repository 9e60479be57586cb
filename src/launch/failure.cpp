// SPDX-License-Identifier: Apache-2.0
// From an exception to one line and an exit code.
#include "tessera/launch/failure.h"

#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <new>

#include "launch/control_channel.h"
#include "launch/terminal.h"
#include "tessera/base/error.h"
#include "tessera/launch/environment.h"

namespace tessera::launcher {
namespace {

/// The rank under a launcher that is not ours, where every rank has to print for itself.
std::string rank_prefix() {
  try {
    const RankEnvironment ranks = detect_ranks(process_environment());
    return ranks.world_size > 1 ? fmt::format("rank {} of {}: ", ranks.rank, ranks.world_size) : std::string();
  } catch (const ConfigError&) {
    return {};  // the environment may itself be what is reported
  }
}

std::optional<int> control_channel() {
  const auto fd = process_environment()("TESSERA_CONTROL_FD");
  const int number = fd ? std::atoi(fd->c_str()) : -1;
  return number >= 0 && detail::is_control_channel(number) ? std::optional(number) : std::nullopt;
}

[[noreturn]] void report_and_exit() noexcept {
  const std::exception_ptr exception = std::current_exception();
  if (exception == nullptr) {
    std::abort();
  }
  const FailureReport report = describe_failure(exception);
  report_failure(report);
  std::fflush(nullptr);
  std::_Exit(report.exit_code);
}

}  // namespace

FailureReport describe_failure(const std::exception_ptr& exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const ConfigError& error) {
    return {.kind = error.kind(), .message = error.what(), .exit_code = kExitConfig};
  } catch (const Error& error) {
    return {.kind = error.kind(), .message = error.what(), .exit_code = kExitFailed};
  } catch (const c10::OutOfMemoryError& error) {
    return {.kind = "out_of_memory", .message = error.what_without_backtrace(), .exit_code = kExitFailed};
  } catch (const c10::Error& error) {
    return {.kind = "torch", .message = error.what_without_backtrace(), .exit_code = kExitFailed};
  } catch (const std::bad_alloc&) {
    return {.kind = "out_of_memory", .message = "out of memory", .exit_code = kExitFailed};
  } catch (const std::exception& error) {
    return {.kind = "error", .message = error.what(), .exit_code = kExitFailed};
  } catch (...) {
    return {.kind = "error", .message = "an exception that is no std::exception", .exit_code = kExitFailed};
  }
}

void report_failure(const FailureReport& report) noexcept {
  try {
    const auto channel = control_channel();
    if (!channel || !detail::send_failure(*channel, report)) {
      detail::print_error(rank_prefix() + report.message);
    }
  } catch (...) {
    detail::print_error(report.message);
  }
}

int guarded_main(const std::function<int()>& body) noexcept {
  try {
    return body();
  } catch (...) {
    const FailureReport report = describe_failure(std::current_exception());
    report_failure(report);
    return report.exit_code;
  }
}

void report_uncaught_exceptions() noexcept { std::set_terminate(report_and_exit); }

}  // namespace tessera::launcher
