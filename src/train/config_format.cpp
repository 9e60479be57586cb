// SPDX-License-Identifier: Apache-2.0
// The resolved configuration as JSON and as TOML.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <nlohmann/json.hpp>

#include "tessera/train/config.h"
#include "train/config_values.h"

namespace tessera::train {
namespace {

using Json = nlohmann::ordered_json;

// Scalars and lists of integers are spelt alike in both languages, JSON's string escapes being a subset of TOML's.
std::string spell(const ConfigValue& value) {
  return std::visit([](const auto& plain) { return Json(plain).dump(-1, ' ', false, Json::error_handler_t::replace); },
                    value);
}

}  // namespace

std::string format_json(const TrainConfig& config) {
  Json root = Json::object();
  for (const auto& field : config_fields()) {
    const auto dot = field.key.find('.');
    auto& place =
        dot == std::string::npos ? root[field.key] : root[field.key.substr(0, dot)][field.key.substr(dot + 1)];
    std::visit([&](const auto& plain) { place = plain; }, load_value(field, config));
  }
  return root.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string format_toml(const TrainConfig& config) {
  std::string top;
  std::string sections;
  std::string section;
  for (const auto& field : config_fields()) {
    if (field.key == "steps" && config.epochs > 0) continue;
    const auto dot = field.key.find('.');
    const auto value = spell(load_value(field, config));
    if (dot == std::string::npos) {
      top += fmt::format("{} = {}\n", field.key, value);
      continue;
    }
    if (const auto name = field.key.substr(0, dot); name != section) {
      section = name;
      sections += fmt::format("\n[{}]\n", name);
    }
    sections += fmt::format("{} = {}\n", field.key.substr(dot + 1), value);
  }
  return top + sections;
}

}  // namespace tessera::train
