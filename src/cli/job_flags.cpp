// SPDX-License-Identifier: Apache-2.0
// From flags to a configuration.
#include "cli/job_flags.h"

#include "tessera/base/error.h"

namespace tessera::cli {
namespace {

std::string help_of(const train::ConfigField& field) {
  const train::TrainConfig defaults;
  std::string text = field.doc;
  if (!field.unit.empty()) text += " [" + field.unit + "]";
  if (!field.allowed.empty()) text += fmt::format("; one of {}", fmt::join(field.allowed, ", "));
  const std::string value = train::format_value(field, defaults);
  return value.empty() ? text : text + fmt::format(" (default {})", value);
}

bool is_switch(const train::ConfigField& field) { return std::holds_alternative<bool& (*)(train::TrainConfig&)>(field.member); }

}  // namespace

void add_job_flags(CLI::App& command, JobFlags& flags) {
  command.add_option("config", flags.config_file, "TOML file; flags win over it")->option_text("[CONFIG.toml]");
  command.add_option("--set", flags.assignments, "section.key=value of any configuration key")->option_text("KEY=VALUE");
  command.add_option("--json", flags.json, "writes one JSON object per line to this file; - is standard output")
      ->option_text("FILE");
  command.add_option("--transport", flags.transport, "shm or gloo (default: shm on one machine, else gloo)");
  command.add_flag("--print-config", flags.print_config, "prints the resolved configuration as TOML and ends");
  for (const train::ConfigField& field : train::config_fields()) {
    if (field.flag.empty()) continue;
    const auto keep = [&flags, key = field.key](const std::string& value) { flags.settings.emplace_back(key, value); };
    if (is_switch(field)) {
      command.add_flag_callback("--" + field.flag, [keep] { keep("true"); }, help_of(field));
    } else {
      command.add_option_function<std::string>("--" + field.flag, keep, help_of(field))
          ->option_text("VALUE")
          ->trigger_on_parse();
    }
  }
}

train::TrainConfig read_config(const JobFlags& flags, const Defaults& defaults) {
  train::ConfigReader reader;
  if (!flags.config_file.empty()) reader.read_file(flags.config_file);
  for (const std::string& assignment : flags.assignments) reader.assign(assignment, "--set");
  for (const auto& [key, value] : flags.settings) {
    for (const train::ConfigField& field : train::config_fields()) {
      if (field.key == key) reader.set(key, value, "--" + field.flag);
    }
  }
  for (const auto& [key, value] : defaults) {
    if (!reader.is_set(key)) reader.set(key, value, "default");
  }
  return reader.finish();
}

std::vector<Axis> axes_of(const train::TrainConfig& config, int world_size) {
  std::vector<Axis> axes = parse_axes(config.mesh);
  const int ranks = count_ranks(axes);
  check<ConfigError>(ranks > 0 || world_size > 0,
                     "mesh \"{}\": -1 takes the rest of the ranks, but nobody says how many there are; give every axis a "
                     "size, or start under `tessera run --nproc N`",
                     config.mesh);
  return resolve_axes(std::move(axes), world_size > 0 ? world_size : ranks);
}

int count_ranks(const std::vector<Axis>& axes) {
  int ranks = 1;
  for (const Axis& axis : axes) ranks *= axis.size;
  return ranks;
}

}  // namespace tessera::cli
