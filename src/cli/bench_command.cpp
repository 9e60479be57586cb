// SPDX-License-Identifier: Apache-2.0
// `tessera bench`: chooses what is measured.
#include <map>

#include "cli/bench_commands.h"
#include "tessera/base/error.h"

namespace tessera::cli {
namespace {

struct BenchRow {
  const char* name;
  Command (*add)(CLI::App&, const Invocation&);
};

constexpr BenchRow kBenches[] = {
    {"op", add_bench_op}, {"collectives", add_bench_collectives}, {"train", add_bench_train},
    {"pipeline", add_bench_pipeline}};

}  // namespace

Command add_bench(CLI::App& app, const Invocation& invocation) {
  CLI::App* command = app.add_subcommand("bench", "measures operators, collectives, training steps and pipeline schedules");
  command->footer("\nExamples:\n"
                  "  tessera bench op\n"
                  "  tessera bench collectives --transport shm --nproc 4\n"
                  "  tessera bench train --model gpt --mesh tp=2 --json -");
  command->require_subcommand(0, 1);
  std::map<std::string, Command> benches;
  for (const BenchRow& row : kBenches) benches[row.name] = row.add(*command, invocation);
  return [command, benches] {
    const auto chosen = command->get_subcommands();
    check<ConfigError>(!chosen.empty(), "bench: nothing to measure was named; allowed: op, collectives, train, pipeline, for "
                       "instance `tessera bench op`");
    return benches.at(chosen.front()->get_name())();
  };
}

}  // namespace tessera::cli
