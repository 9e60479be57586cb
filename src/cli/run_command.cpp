// SPDX-License-Identifier: Apache-2.0
// `tessera run`: starts the user's own program as several ranks.
#include <iostream>

#include "cli/commands.h"
#include "tessera/base/error.h"
#include "tessera/launch/run.h"

namespace tessera::cli {

Command add_run(CLI::App& app, const Invocation&) {
  CLI::App* command = app.add_subcommand("run", "starts a program as several ranks, with torchrun's variables");
  command->footer("\nExample:\n  tessera run --nproc 4 -- ./my_program --lr 0.1");
  struct Flags {
    launcher::RunOptions options;
    std::vector<std::string> program;
  };
  const auto flags = std::make_shared<Flags>();
  command->add_option("--nproc,--nproc-per-node", flags->options.nproc, "ranks: a number, cpu, gpu or auto (default 1)");
  command->add_option("--nnodes", flags->options.nnodes, "machines; more than one is started by torchrun, srun or mpirun");
  command->add_option("--master-addr", flags->options.master_addr, "MASTER_ADDR of the ranks (default 127.0.0.1)");
  command->add_option("--master-port", flags->options.master_port, "MASTER_PORT of the ranks (default: a free one)");
  command->add_flag("--standalone", flags->options.standalone, "accepted: one machine always is");
  command->add_option("--threads-per-rank", flags->options.threads_per_rank, "OMP_NUM_THREADS of a rank (default 1)");
  command->add_option("program", flags->program, "program and its arguments")->option_text("-- PROGRAM ARGS");
  return [flags] {
    check<ConfigError>(!flags->program.empty(), "run: no program; write it behind --, for instance tessera run --nproc 4 "
                       "-- ./my_program");
    const launcher::JobResult result = launcher::run_program(flags->options, flags->program);
    if (result.first_failure) std::cerr << "tessera: error: " << result.first_failure->message << '\n';
    return result.exit_code;
  };
}

}  // namespace tessera::cli
