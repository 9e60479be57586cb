// SPDX-License-Identifier: Apache-2.0
// The `tessera` binary.
#include <iostream>

#include "cli/commands.h"
#include "tessera/base/error.h"
#include "tessera/base/text.h"
#include "tessera/base/version.h"
#include "tessera/launch/failure.h"

namespace tessera::cli {
namespace {

struct Row {
  const char* name;
  Command (*add)(CLI::App&, const Invocation&);
};

constexpr Row kCommands[] = {{"train", add_train}, {"verify", add_verify}, {"run", add_run}};

/// Words that may follow a command: its flags, or the commands themselves.
std::vector<std::string> known_words(const CLI::App& app) {
  std::vector<std::string> words;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) words.push_back("--" + name);
  }
  for (const CLI::App* command : app.get_subcommands({})) words.push_back(command->get_name());
  return words;
}

/// CLI11 says what it did not expect; add what was probably meant.
[[noreturn]] void refuse_extra(const CLI::App& app, const std::string& word) {
  const auto chosen = app.get_subcommands();
  const CLI::App& context = chosen.empty() ? app : *chosen.front();
  const std::string kind = word.starts_with("-") ? "flag" : chosen.empty() ? "command" : "argument";
  const std::string flag = word.substr(0, word.find('='));
  throw ConfigError(fmt::format("{} \"{}\" is not known{}; did you mean \"{}\"? `{} --help` lists all", kind, flag,
                                chosen.empty() ? "" : " to " + context.get_name(),
                                base::nearest_word(flag, known_words(context)),
                                chosen.empty() ? "tessera" : "tessera " + context.get_name()));
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
  for (const Row& row : kCommands) commands[row.name] = row.add(app, invocation);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ExtrasError&) {
    const auto chosen = app.get_subcommands();
    refuse_extra(app, chosen.empty() ? app.remaining().front() : chosen.front()->remaining().front());
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
  return tessera::launcher::guarded_main([&] { return tessera::cli::run(argc, argv); });
}
