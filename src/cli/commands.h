// SPDX-License-Identifier: Apache-2.0
// The commands of the `tessera` binary: each registers its flags and runs when chosen.
#pragma once

#include <CLI/CLI.hpp>

#include <functional>
#include <string>
#include <vector>

namespace tessera::cli {

/// What every command gets: the words it was started with, for starting itself again as several ranks.
struct Invocation {
  std::vector<std::string> words;
};

/// Runs the chosen command; returns the exit code: 0 done, 1 the work failed or a check did not hold. Wrong usage is a
/// ConfigError (exit code 2).
using Command = std::function<int()>;

/// Adds the subcommand to `app` and returns what runs it.
[[nodiscard]] Command add_train(CLI::App& app, const Invocation& invocation);
[[nodiscard]] Command add_verify(CLI::App& app, const Invocation& invocation);
[[nodiscard]] Command add_simulate(CLI::App& app, const Invocation& invocation);
[[nodiscard]] Command add_bench(CLI::App& app, const Invocation& invocation);
[[nodiscard]] Command add_checkpoint(CLI::App& app, const Invocation& invocation);
[[nodiscard]] Command add_run(CLI::App& app, const Invocation& invocation);

}  // namespace tessera::cli
