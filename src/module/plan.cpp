// SPDX-License-Identifier: Apache-2.0
// Plans: patterns, and their TOML form.
#include "tessera/module/plan.h"

#include <fnmatch.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <sstream>
#define TOML_EXCEPTIONS 1
#include <toml++/toml.h>

#include "module/stage_patterns.h"
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

std::map<std::string, Placement> parse_outputs(const toml::table& table, const std::string& where) {
  std::map<std::string, Placement> outputs;
  for (const auto& [key, node] : table) {
    const auto text = node.value<std::string>();
    check<ConfigError>(text.has_value(), "{}: output.{} must be a string, for instance \"shard(1)\"", where, key.str());
    outputs[known_axis(std::string(key.str()), where)] = parse_placement(*text);
  }
  return outputs;
}

Plan::Entry parse_entry(const toml::table& table, const std::string& origin) {
  const std::string where = fmt::format("{}:{}", origin, table.source().begin.line);
  Plan::Entry entry;
  for (const auto& [key, node] : table) {
    const std::string name(key.str());
    if (name == "output") {
      check<ConfigError>(node.is_table(), "{}: output needs an axis, for instance output.tp = \"shard(1)\"", where);
      entry.outputs = parse_outputs(*node.as_table(), where);
      continue;
    }
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

constexpr std::array<std::pair<std::string_view, c10::ScalarType>, 4> kReduceDtypes{
    {{"float64", c10::kDouble}, {"float32", c10::kFloat}, {"bfloat16", c10::kBFloat16}, {"float16", c10::kHalf}}};
constexpr const char* kReduceDtypeWords = "float64, float32, bfloat16, float16";

/// Empty if gradients cannot be reduced in it.
std::string_view word_of(c10::ScalarType dtype) {
  for (const auto& [word, known] : kReduceDtypes) {
    if (known == dtype) return word;
  }
  return {};
}

c10::ScalarType parse_dtype(const toml::node& node, const std::string& origin) {
  const auto text = node.value<std::string>().value_or("");
  for (const auto& [word, dtype] : kReduceDtypes) {
    if (text == word) return dtype;
  }
  throw ConfigError(fmt::format("{}:{}: reduce_dtype = \"{}\" is not known; allowed: {}, as a string", origin,
                                node.source().begin.line, text, kReduceDtypeWords));
}

constexpr std::array<std::pair<std::string_view, StageOrder>, 2> kOrders{
    {{"loop", StageOrder::kLoop}, {"v", StageOrder::kV}}};

std::vector<std::vector<std::string>> parse_stages(toml::node_view<toml::node> node, const std::string& origin) {
  const std::string where = fmt::format("{}:{}", origin, node.node()->source().begin.line);
  constexpr const char* kExample = "an array of arrays of patterns, for instance [[\"block0-1\"], [\"block2-3\"]]";
  check<ConfigError>(node.is_array(), "{}: stages must be {}", where, kExample);
  std::vector<std::vector<std::string>> stages;
  for (const toml::node& stage : *node.as_array()) {
    check<ConfigError>(stage.is_array(), "{}: stages must be {}", where, kExample);
    std::vector<std::string>& patterns = stages.emplace_back();
    for (const toml::node& pattern : *stage.as_array()) {
      const auto text = pattern.value<std::string>();
      check<ConfigError>(text.has_value(), "{}: stages must be {}", where, kExample);
      patterns.push_back(*text);
    }
  }
  return stages;
}

StageOrder parse_order(toml::node_view<toml::node> node, const std::string& origin) {
  if (!node) return StageOrder::kLoop;
  const auto text = node.value<std::string>().value_or("");
  for (const auto& [word, order] : kOrders) {
    if (text == word) return order;
  }
  throw ConfigError(fmt::format("{}:{}: stage_order = \"{}\" is not known; allowed: \"loop\", \"v\"", origin,
                                node.node()->source().begin.line, text));
}

Recompute parse_mode(const toml::node& node, const std::string& origin) {
  try {
    return parse_recompute(node.value<std::string>().value_or(""));
  } catch (const ConfigError& error) {
    throw ConfigError(fmt::format("{}:{}: {}", origin, node.source().begin.line, error.what()));
  }
}

/// Writes the placements of the axes that `mesh` has, and returns their bit mask.
unsigned apply(const std::map<std::string, Placement>& by_name, const Mesh& mesh, Placements& placements) {
  unsigned axes = 0;
  for (const auto& [name, placement] : by_name) {
    const int axis = mesh.axis_index(name);
    if (axis < 0) continue;
    placements[axis] = placement;
    axes |= 1U << static_cast<unsigned>(axis);
  }
  return axes;
}

}  // namespace

Plan& Plan::add(std::string match, const std::map<std::string, Placement>& placements,
                const std::map<std::string, Placement>& outputs) {
  Entry entry{std::move(match), {}};
  for (const auto& [axis, placement] : placements) entry.placements[known_axis(axis, "plan")] = placement;
  for (const auto& [axis, placement] : outputs) entry.outputs[known_axis(axis, "plan")] = placement;
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
    if (key.str() == "stages" || key.str() == "stage_order") continue;
    if (key.str() == "zero") {
      const auto stage = node.value<std::int64_t>();
      check<ConfigError>(stage.has_value(), "{}:{}: zero must be a number; allowed: 0, 1, 2, 3", origin,
                         node.source().begin.line);
      plan.zero(static_cast<int>(std::clamp<std::int64_t>(*stage, -1, 4)));
      continue;
    }
    if (key.str() == "prefetch_bytes") {
      const auto bytes = node.value<std::int64_t>();
      check<ConfigError>(bytes.has_value(), "{}:{}: prefetch_bytes must be a number of bytes; allowed: 0 and above",
                         origin, node.source().begin.line);
      plan.prefetch_bytes(*bytes);
      continue;
    }
    if (key.str() == "reduce_dtype") {
      plan.reduce_dtype(parse_dtype(node, origin));
      continue;
    }
    if (key.str() == "recompute") {
      plan.recompute(parse_mode(node, origin));
      continue;
    }
    check<ConfigError>(key.str() == "parameters" && node.is_array_of_tables(),
                       "{}:{}: \"{}\" is not known in a plan; allowed: zero, prefetch_bytes, reduce_dtype, recompute, "
                       "stages, stage_order, [[parameters]] tables with match and axes",
                       origin, node.source().begin.line, key.str());
    for (const toml::node& item : *node.as_array()) plan.entries_.push_back(parse_entry(*item.as_table(), origin));
  }
  if (root.contains("stages"))
    plan.stages(parse_stages(root["stages"], origin), parse_order(root["stage_order"], origin));
  return plan;
}

std::string Plan::to_toml() const {
  std::string text = zero_ == 0 ? "" : fmt::format("zero = {}\n\n", zero_);
  if (prefetch_bytes_ != 0) text += fmt::format("prefetch_bytes = {}\n\n", prefetch_bytes_);
  if (reduce_dtype_) text += fmt::format("reduce_dtype = \"{}\"\n\n", word_of(*reduce_dtype_));
  if (recompute_ != Recompute::kNone) text += fmt::format("recompute = \"{}\"\n\n", to_string(recompute_));
  for (std::size_t k = 0; k < stages_.size(); ++k) {
    text += fmt::format("{}[\"{}\"]{}", k == 0 ? "stages = [" : "  ", fmt::join(stages_[k], "\", \""),
                        k + 1 < stages_.size() ? ",\n" : "]\n");
  }
  if (stage_order_ == StageOrder::kV) text += "stage_order = \"v\"\n";
  if (!stages_.empty()) text += '\n';
  for (const Entry& entry : entries_) {
    text += fmt::format("[[parameters]]\nmatch = \"{}\"\n", entry.match);
    for (const auto& [axis, placement] : entry.placements) {
      text += fmt::format("{} = \"{}\"\n", axis, to_string(placement));
    }
    for (const auto& [axis, placement] : entry.outputs) {
      text += fmt::format("output.{} = \"{}\"\n", axis, to_string(placement));
    }
    text += '\n';
  }
  return text;
}

Plan& Plan::stages(std::vector<std::vector<std::string>> patterns, StageOrder order) {
  check<ConfigError>(!patterns.empty() && patterns.size() <= kMaxStages, "plan: {} stages; allowed: 1 to {}",
                     patterns.size(), kMaxStages);
  for (std::size_t k = 0; k < patterns.size(); ++k) {
    check<ConfigError>(!patterns[k].empty(), "plan: stage {} names nothing; give it a pattern, or have fewer stages",
                       k);
  }
  stages_ = std::move(patterns);
  stage_order_ = order;
  return *this;
}

std::vector<int> Plan::rank_of_stage(int ranks) const {
  const int count = static_cast<int>(stages_.size());
  const bool is_v = stage_order_ == StageOrder::kV;
  check<ConfigError>(is_v ? count == 2 * ranks : count % ranks == 0,
                     "plan: {} stages in {} order over pp={} ranks; allowed: {}", count, is_v ? "v" : "loop", ranks,
                     is_v ? fmt::format("{}", 2 * ranks) : fmt::format("a multiple of {}", ranks));
  std::vector<int> map;
  for (int stage = 0; stage < count; ++stage) map.push_back(tessera::rank_of_stage(stage_order_, stage, ranks));
  return map;
}

StageSet Plan::stage_of(const std::string& name) const {
  for (std::size_t k = 0; k < stages_.size(); ++k) {
    for (const std::string& pattern : stages_[k]) {
      if (module::names(pattern, name)) return Stage(static_cast<int>(k)).stages;
    }
  }
  return 0;
}

const Plan::Entry* Plan::entry_of(const std::string& parameter) const {
  const auto found = std::find_if(entries_.begin(), entries_.end(),
                                  [&](const Entry& entry) { return matches(entry.match, parameter); });
  return found == entries_.end() ? nullptr : &*found;
}

ParameterLayout Plan::layout_of(const std::string& parameter, std::int64_t num_dims, const Mesh& mesh) const {
  ParameterLayout layout;
  Placements value = Placements::replicated(mesh.num_axes());
  layout.output = value;
  if (const Entry* entry = entry_of(parameter)) {
    apply(entry->placements, mesh, value);
    layout.planned_outputs = apply(entry->outputs, mesh, layout.output);
  }
  layout.value = layout.gradient = layout.state = value;
  const int axis = mesh.axis_index("dp_shard");
  if (axis < 0 || mesh.axis_size(axis) == 1) return layout;
  if (zero_ > 0 && num_dims > 0 && value[axis].is_replicate()) {
    if (zero_ >= 1) layout.state[axis] = Shard(0);
    if (zero_ >= 2) layout.gradient[axis] = Shard(0);
    if (zero_ >= 3) layout.value[axis] = Shard(0);
  }
  if (layout.value[axis].is_shard()) layout.gathered_at_use = 1U << static_cast<unsigned>(axis);
  return layout;
}

Plan& Plan::zero(int stage) {
  check<ConfigError>(stage >= 0 && stage <= 3,
                     "zero = {} is out of range; allowed: 0 nothing is sharded, 1 optimizer state, 2 gradients too, "
                     "3 parameters too",
                     stage);
  zero_ = stage;
  return *this;
}

Plan& Plan::prefetch_bytes(std::int64_t bytes) {
  check<ConfigError>(bytes >= 0, "prefetch_bytes = {} is out of range; allowed: 0 nothing is gathered ahead, and above",
                     bytes);
  prefetch_bytes_ = bytes;
  return *this;
}

Plan& Plan::reduce_dtype(c10::ScalarType dtype) {
  check<ConfigError>(!word_of(dtype).empty(), "reduce_dtype = {} is no dtype to reduce gradients in; allowed: {}",
                     c10::toString(dtype), kReduceDtypeWords);
  reduce_dtype_ = dtype;
  return *this;
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
