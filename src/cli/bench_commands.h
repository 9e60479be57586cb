// SPDX-License-Identifier: Apache-2.0
// What `tessera bench` measures: each subcommand registers its flags under `bench` and runs when chosen.
#pragma once

#include "cli/commands.h"

namespace tessera::cli {

[[nodiscard]] Command add_bench_op(CLI::App& bench, const Invocation& invocation);
[[nodiscard]] Command add_bench_collectives(CLI::App& bench, const Invocation& invocation);
[[nodiscard]] Command add_bench_train(CLI::App& bench, const Invocation& invocation);
[[nodiscard]] Command add_bench_pipeline(CLI::App& bench, const Invocation& invocation);

}  // namespace tessera::cli
