// SPDX-License-Identifier: Apache-2.0
// Plans: patterns, and their TOML form.
#include "tessera/module/plan.h"

#include <fnmatch.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#define TOML_EXCEPTIONS 1
#include <toml++/toml.h>

#include "tessera/base/error.h"
#include "tessera/base/text.h"

namespace tessera {
namespace {

bool matches(const std::string& pattern, const std::string& name) {
  return ::fnmatch(pattern.c_str(), name.c_str(), 0) == 0;
}

std::string known_axis(const std::string& axis, const std::string& where) {
  const std::string name = axis == "dp" ? "dp_replicate" : axis;
  const auto& known = canonical_axes();
  check<ConfigError>(std::find(known.begin(), known.end(), name) != known.end(),
                     "{}: axis \"{}\" is not known; allowed: {}; did you mean \"{}\"?", where, axis,
                     fmt::join(known, ", "), base::nearest_word(axis, known));
  return name;
}

Plan::Entry parse_entry(const toml::table& table, const std::string& origin) {
  const std::string where = fmt::format("{}:{}", origin, table.source().begin.line);
  Plan::Entry entry;
  for (const auto& [key, node] : table) {
    const std::string name(key.str());
    const auto text = node.value<std::string>();
    check<ConfigError>(text.has_value(), "{}: {} must be a string, for instance \"colwise\"", where, name);
    if (name == "match") {
      entry.match = *text;
    } else {
      entry.placements[known_axis(name, where)] = parse_placement(*text);
    }
  }
  check<ConfigError>(!entry.match.empty(), "{}: [[parameters]] needs match = \"PATTERN\" over parameter names", where);
  return entry;
}

}  // namespace

Plan& Plan::add(std::string match, const std::map<std::string, Placement>& placements) {
  Entry entry{std::move(match), {}};
  for (const auto& [axis, placement] : placements) entry.placements[known_axis(axis, "plan")] = placement;
  entries_.push_back(std::move(entry));
  return *this;
}

Plan Plan::load(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  check<FileError>(file.is_open(), "plan {}: cannot be read; name an existing TOML file", path);
  text << file.rdbuf();
  check<FileError>(!file.bad() && !text.fail(), "plan {}: cannot be read; name an existing TOML file", path);
  return parse(text.str(), path);
}

Plan Plan::parse(std::string_view text, const std::string& origin) {
  toml::table root;
  try {
    root = toml::parse(text, origin);
  } catch (const toml::parse_error& error) {
    throw ConfigError(fmt::format("{}:{}: not TOML: {}", origin, error.source().begin.line, error.description()));
  }
  Plan plan;
  for (const auto& [key, node] : root) {
    check<ConfigError>(key.str() == "parameters" && node.is_array_of_tables(),
                       "{}:{}: \"{}\" is not known in a plan; allowed: [[parameters]] tables with match and axes",
                       origin, node.source().begin.line, key.str());
    for (const toml::node& item : *node.as_array()) plan.entries_.push_back(parse_entry(*item.as_table(), origin));
  }
  return plan;
}

std::string Plan::to_toml() const {
  std::string text;
  for (const Entry& entry : entries_) {
    text += fmt::format("[[parameters]]\nmatch = \"{}\"\n", entry.match);
    for (const auto& [axis, placement] : entry.placements) {
      text += fmt::format("{} = \"{}\"\n", axis, to_string(placement));
    }
    text += '\n';
  }
  return text;
}

Placements Plan::placements_of(const std::string& parameter, const Mesh& mesh) const {
  Placements placements = Placements::replicated(mesh.num_axes());
  for (const Entry& entry : entries_) {
    if (!matches(entry.match, parameter)) continue;
    for (const auto& [axis, placement] : entry.placements) {
      const int index = mesh.axis_index(axis);
      if (index >= 0) placements[index] = placement;
    }
    break;
  }
  return placements;
}

void Plan::check_matches(const std::vector<std::string>& parameters) const {
  for (const Entry& entry : entries_) {
    const bool any = std::any_of(parameters.begin(), parameters.end(),
                                 [&](const std::string& name) { return matches(entry.match, name); });
    check<ConfigError>(any, "plan pattern \"{}\" matches no parameter; the nearest name is \"{}\"", entry.match,
                       base::nearest_word(entry.match, parameters));
  }
}

}  // namespace tessera
