// SPDX-License-Identifier: Apache-2.0
// Where configuration comes from: TOML files, assignments and flags; and the list of what is wrong with them.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <toml++/toml.h>

#include <fstream>
#include <iterator>
#include <system_error>

#include "tessera/base/error.h"
#include "tessera/train/config.h"
#include "train/config_values.h"

namespace tessera::train {
namespace {

constexpr std::uintmax_t kMaxFileBytes = 1 << 20;

// The value of a node as one of our types; nothing for dates, mixed arrays and whatever else no field has.
std::optional<ConfigValue> node_value(const toml::node& node) {
  if (const auto* text = node.as_string()) return ConfigValue(text->get());
  if (const auto* integer = node.as_integer()) return ConfigValue(integer->get());
  if (const auto* number = node.as_floating_point()) return ConfigValue(number->get());
  if (const auto* boolean = node.as_boolean()) return ConfigValue(boolean->get());
  const auto* array = node.as_array();
  if (array == nullptr) return std::nullopt;
  std::vector<std::int64_t> values;
  for (const auto& element : *array) {
    if (!element.is_integer()) return std::nullopt;
    values.push_back(element.as_integer()->get());
  }
  return ConfigValue(values);
}

std::string value_text(const std::optional<ConfigValue>& value) {
  struct Visitor {
    std::string operator()(const std::string& text) const { return fmt::format("\"{}\"", text); }
    std::string operator()(const std::vector<std::int64_t>& list) const { return fmt::format("{}", list); }
    std::string operator()(bool boolean) const { return boolean ? "true" : "false"; }
    std::string operator()(std::int64_t integer) const { return fmt::format("{}", integer); }
    std::string operator()(double number) const { return fmt::format("{}", number); }
  };
  return value ? std::visit(Visitor{}, *value) : "a value of another type";
}

bool is_section(std::string_view name) {
  for (const auto& field : config_fields()) {
    if (field.key.size() > name.size() && field.key.starts_with(name) && field.key[name.size()] == '.') return true;
  }
  return false;
}

std::string refusal(const std::string& origin, const ConfigField& field, const std::string& value) {
  return fmt::format("{}: {} = {}; allowed: {}", origin, field.key, value, describe_allowed(field));
}

std::string unknown_key(const std::string& origin, std::string_view key) {
  return fmt::format("{}: \"{}\" is not a known key; {}", origin, key, suggest_key(key));
}

}  // namespace

void ConfigReader::read_file(const std::filesystem::path& path) {
  const auto name = path.string();
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    problems_.push_back(fmt::format("{}: there is no such file; name a TOML file", name));
    return;
  }
  const auto num_bytes = std::filesystem::file_size(path, error);
  if (error || num_bytes > kMaxFileBytes) {
    problems_.push_back(
        fmt::format("{}: the file has {} bytes; a configuration has at most {}", name, num_bytes, kMaxFileBytes));
    return;
  }
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  if (file.bad() || !file.is_open()) {
    problems_.push_back(fmt::format("{}: the file cannot be read; check its permissions", name));
    return;
  }
  read_text(text, name);
}

void ConfigReader::read_text(std::string_view text, const std::string& name) {
  toml::table root;
  try {
    root = toml::parse(text, name);
  } catch (const toml::parse_error& error) {
    problems_.push_back(fmt::format("{}:{}: {}", name, error.source().begin.line, error.description()));
    return;
  }
  const auto take = [&](const std::string& key, const toml::node& node) {
    const auto origin = fmt::format("{}:{}", name, node.source().begin.line);
    const auto* field = find_field(key);
    if (field == nullptr) {
      problems_.push_back(unknown_key(origin, key));
      return;
    }
    const auto value = node_value(node);
    if (value && store_value(*field, *value, config_)) {
      origins_[key] = origin;
    } else {
      problems_.push_back(refusal(origin, *field, value_text(value)));
    }
  };
  for (const auto& [key, node] : root) {
    const std::string section(key.str());
    const auto* table = node.as_table();
    if (table == nullptr || !is_section(section)) {
      take(section, node);
      continue;
    }
    for (const auto& [inner, value] : *table) take(fmt::format("{}.{}", section, inner.str()), value);
  }
}

void ConfigReader::assign(std::string_view assignment, const std::string& origin) {
  const auto equals = assignment.find('=');
  if (equals == std::string_view::npos || equals == 0) {
    problems_.push_back(fmt::format("{}: \"{}\" is not an assignment; write section.key=value", origin, assignment));
    return;
  }
  set(assignment.substr(0, equals), assignment.substr(equals + 1), origin);
}

void ConfigReader::set(std::string_view key, std::string_view value, const std::string& origin) {
  const auto* field = find_field(key);
  if (field == nullptr) {
    problems_.push_back(unknown_key(origin, key));
    return;
  }
  const auto parsed = parse_value(*field, value);
  if (parsed && store_value(*field, *parsed, config_)) {
    origins_[field->key] = origin;
  } else {
    problems_.push_back(refusal(origin, *field, fmt::format("\"{}\"", value)));
  }
}

bool ConfigReader::is_set(std::string_view key) const { return origins_.find(key) != origins_.end(); }

TrainConfig ConfigReader::finish() const {
  auto problems = problems_;
  const auto report = [&](const std::string& key, const std::string& problem) {
    const auto origin = origins_.find(key);
    problems.push_back(origin == origins_.end() ? fmt::format("{}: {}", key, problem)
                                                : fmt::format("{}: {}: {}", origin->second, key, problem));
  };
  for (const auto& [key, problem] : find_contradictions(config_)) report(key, problem);
  if (config_.epochs > 0 && is_set("steps")) {
    report("steps",
           fmt::format("epochs = {} is set as well and would replace it; set only one of them", config_.epochs));
  }
  check<ConfigError>(problems.empty(), "{}", fmt::join(problems, "\n"));
  return config_;
}

}  // namespace tessera::train
