// SPDX-License-Identifier: Apache-2.0
// The flags that train, verify and bench train share, and the configuration they make.
#pragma once

#include <CLI/CLI.hpp>

#include <memory>
#include <string>
#include <vector>

#include "tessera/mesh/mesh.h"
#include "tessera/train/config.h"

namespace tessera::cli {

/// Flags in the order of the command line, before they become a configuration.
struct JobFlags {
  std::string config_file;
  std::vector<std::string> assignments;                       ///< of --set
  std::vector<std::pair<std::string, std::string>> settings;  ///< key, value of the flags that config keys have
  std::string json;
  std::string transport;
  bool print_config = false;
};

/// Registers CONFIG, --set, --json, --transport, --print-config and one flag per configuration field.
void add_job_flags(CLI::App& command, JobFlags& flags);

/// Values that a command uses where neither file nor flag says otherwise.
using Defaults = std::vector<std::pair<std::string, std::string>>;

/// File first, then --set, then flags; later ones win. Throws ConfigError with every problem.
[[nodiscard]] train::TrainConfig read_config(const JobFlags& flags, const Defaults& defaults = {});

/// The mesh's axes in canonical order; an axis of -1 takes what `world_size` (0: unknown) leaves.
[[nodiscard]] std::vector<Axis> axes_of(const train::TrainConfig& config, int world_size = 0);

[[nodiscard]] int count_ranks(const std::vector<Axis>& axes);

}  // namespace tessera::cli
