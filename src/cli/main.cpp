// SPDX-License-Identifier: Apache-2.0
// The `tessera` binary.
#include <iostream>

#include "cli/commands.h"
#include "cli/heap.h"
#include "tessera/base/error.h"
#include "tessera/base/text.h"
#include "tessera/base/version.h"
#include "tessera/launch/failure.h"

namespace tessera::cli {
namespace {

struct CommandRow {
  const char* name;
  Command (*add)(CLI::App&, const Invocation&);
};

constexpr CommandRow kCommands[] = {{"train", add_train}, {"verify", add_verify}, {"simulate", add_simulate},
                             {"bench", add_bench}, {"checkpoint", add_checkpoint}, {"run", add_run}};

/// Words that may follow a command: its flags, or the commands themselves.
std::vector<std::string> known_words(const CLI::App& app) {
  std::vector<std::string> words;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) words.push_back("--" + name);
  }
  for (const CLI::App* command : app.get_subcommands({})) words.push_back(command->get_name());
  return words;
}

/// The command that the words led to, with its subcommands: "tessera bench op".
struct Chosen {
  const CLI::App* app;
  std::string words;
};

Chosen chosen_command(const CLI::App& root) {
  Chosen chosen{&root, "tessera"};
  while (!chosen.app->get_subcommands().empty()) {
    chosen.app = chosen.app->get_subcommands().front();
    chosen.words += " " + chosen.app->get_name();
  }
  return chosen;
}

/// CLI11 says what it did not expect; add what was probably meant.
[[noreturn]] void refuse_extra(const CLI::App& root) {
  const auto [app, words] = chosen_command(root);
  const std::string word = app->remaining().front();
  const bool has_commands = !app->get_subcommands({}).empty();
  const std::string kind = word.starts_with("-") ? "flag" : has_commands ? "command" : "argument";
  const std::string flag = word.substr(0, word.find('='));
  throw ConfigError(fmt::format("{} \"{}\" is not known{}; did you mean \"{}\"? `{} --help` lists all", kind, flag,
                                app == &root ? "" : " to " + app->get_name(), base::nearest_word(flag, known_words(*app)),
                                words));
}

int run(int argc, char** argv) {
  CLI::App app{"Tessera: distributed training for the PyTorch C++ frontend\n\n"
               "  tessera train --model gpt --mesh dp=2,tp=2\n"
               "  tessera verify --model gpt --precision fp64 --meshes all:4\n"
               "  tessera run --nproc 4 -- ./my_program"};
  app.name("tessera");
  app.set_version_flag("--version", fmt::format("tessera {} (LibTorch {})", base::version(),
                                                base::format_version(base::loaded_torch_version())));
  app.require_subcommand(0, 1);
  const Invocation invocation{{argv, argv + argc}};
  std::map<std::string, Command> commands;
  for (const CommandRow& row : kCommands) commands[row.name] = row.add(app, invocation);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ExtrasError&) {
    refuse_extra(app);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error, std::cout, std::cerr);
    throw ConfigError(error.what());
  }
  if (app.get_subcommands().empty()) {
    std::cout << app.help();
    return 0;
  }
  base::check_torch_version();
  return commands.at(app.get_subcommands().front()->get_name())();
}

}  // namespace
}  // namespace tessera::cli

int main(int argc, char** argv) {
  tessera::cli::keep_freed_memory();
  return tessera::launcher::guarded_main([&] { return tessera::cli::run(argc, argv); });
}
