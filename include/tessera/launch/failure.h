// SPDX-License-Identifier: Apache-2.0
// How a failing program ends: one line, once for the whole job, and the right exit code.
#pragma once

#include <exception>
#include <functional>
#include <string>

namespace tessera::launcher {

constexpr int kExitFailed = 1;
constexpr int kExitConfig = 2;
constexpr int kExitInterrupted = 130;

/// What is worth saying about an exception.
struct FailureReport {
  /// tessera::Error's kind; "out_of_memory", "torch" or "error" for the exceptions of others.
  std::string kind;
  /// Without a stack trace.
  std::string message;
  /// kExitConfig for ConfigError, else kExitFailed.
  int exit_code = kExitFailed;
};

[[nodiscard]] FailureReport describe_failure(const std::exception_ptr& exception);

/// Hands the report to the launcher that started this rank, which prints the first cause once for the job; without
/// such a launcher writes `tessera: error: ...` to stderr.
void report_failure(const FailureReport& report) noexcept;

/// Runs the body of a program's main: what it throws is reported and becomes the exit code.
///
///   int main(int argc, char** argv) {
///     return tessera::launcher::guarded_main([&] { ...; return 0; });
///   }
[[nodiscard]] int guarded_main(const std::function<int()>& body) noexcept;

/// The same for programs without guarded_main: an exception that nobody catches is reported and ends the process with
/// its exit code instead of an abort. launch() calls it. Process-wide.
void report_uncaught_exceptions() noexcept;

}  // namespace tessera::launcher
