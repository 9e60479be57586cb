// SPDX-License-Identifier: Apache-2.0
// Plans as TOML.
#include <array>
#include <fstream>
#include <sstream>
#define TOML_EXCEPTIONS 1
#include <toml++/toml.h>

#include "module/reduce_dtypes.h"
#include "tessera/base/error.h"
#include "tessera/module/plan.h"

namespace tessera {
namespace {

using StagePatterns = std::vector<std::vector<std::string>>;

std::string text_of(const toml::node& node, std::string_view key, std::string_view example) {
  const auto text = node.value<std::string>();
  check<ConfigError>(text.has_value(), "{} must be a string, for instance \"{}\"", key, example);
  return *text;
}

std::int64_t number_of(const toml::node& node, std::string_view key, std::string_view what) {
  check<ConfigError>(node.is_integer(), "{} must be {}", key, what);
  return node.as_integer()->get();
}

std::map<std::string, Placement> outputs_of(const toml::node& node) {
  check<ConfigError>(node.is_table(), "output needs an axis, for instance output.tp = \"shard(1)\"");
  std::map<std::string, Placement> outputs;
  for (const auto& [key, placement] : *node.as_table()) {
    outputs[std::string(key.str())] = parse_placement(text_of(placement, fmt::format("output.{}", key.str()), "shard(1)"));
  }
  return outputs;
}

void add_entry(Plan& plan, const toml::table& table) {
  Plan::Entry entry;
  for (const auto& [key, node] : table) {
    const std::string name(key.str());
    if (name == "match") {
      entry.match = text_of(node, name, "block*.qkv.*");
    } else if (name == "output") {
      entry.outputs = outputs_of(node);
    } else {
      entry.placements[name] = parse_placement(text_of(node, name, "colwise"));
    }
  }
  check<ConfigError>(!entry.match.empty(), "[[parameters]] needs match = \"PATTERN\" over parameter names");
  plan.add(std::move(entry.match), entry.placements, entry.outputs);
}

c10::ScalarType reduce_dtype_of(const toml::node& node) {
  const std::string text = text_of(node, "reduce_dtype", "float32");
  for (const auto& [word, dtype] : module::kReduceDtypes) {
    if (text == word) return dtype;
  }
  throw ConfigError(fmt::format("reduce_dtype = \"{}\" is not known; allowed: {}, as a string", text,
                                module::kReduceDtypeWords));
}

StagePatterns stages_of(const toml::node& node) {
  constexpr const char* kMessage =
      "stages must be an array of arrays of patterns, for instance [[\"block0-1\"], [\"block2-3\"]]";
  check<ConfigError>(node.is_array(), kMessage);
  StagePatterns stages;
  for (const toml::node& stage : *node.as_array()) {
    check<ConfigError>(stage.is_array(), kMessage);
    std::vector<std::string>& patterns = stages.emplace_back();
    for (const toml::node& pattern : *stage.as_array()) {
      check<ConfigError>(pattern.is_string(), kMessage);
      patterns.push_back(pattern.as_string()->get());
    }
  }
  return stages;
}

constexpr std::array<std::pair<std::string_view, StageOrder>, 2> kOrders{
    {{"loop", StageOrder::kLoop}, {"v", StageOrder::kV}}};

StageOrder order_of(const toml::table& root) {
  const toml::node* node = root.get("stage_order");
  const std::string text = node == nullptr ? "loop" : text_of(*node, "stage_order", "v");
  for (const auto& [word, order] : kOrders) {
    if (text == word) return order;
  }
  throw ConfigError(fmt::format("stage_order = \"{}\" is not known; allowed: \"loop\", \"v\"", text));
}

/// What a key does to a plan, given its value and the whole file.
using Reader = void (*)(Plan&, const toml::node&, const toml::table&);

const std::map<std::string_view, Reader>& readers() {
  static const std::map<std::string_view, Reader> table{
      {"prefetch_bytes", [](Plan& plan, const toml::node& node, const toml::table&) {
         plan.prefetch_bytes(number_of(node, "prefetch_bytes", "a number of bytes; allowed: 0 and above"));
       }},
      {"recompute", [](Plan& plan, const toml::node& node, const toml::table&) {
         plan.recompute(parse_recompute(text_of(node, "recompute", "8GiB")));
       }},
      {"reduce_dtype",
       [](Plan& plan, const toml::node& node, const toml::table&) { plan.reduce_dtype(reduce_dtype_of(node)); }},
      {"stage_order", [](Plan&, const toml::node&, const toml::table& root) {
         (void)order_of(root);
         check<ConfigError>(root.contains("stages"), "stage_order without stages; add them, or leave it out");
       }},
      {"stages", [](Plan& plan, const toml::node& node, const toml::table& root) {
         plan.stages(stages_of(node), order_of(root));
       }},
      {"zero", [](Plan& plan, const toml::node& node, const toml::table&) {
         plan.zero(number_of(node, "zero", "a number; allowed: 0, 1, 2, 3"));
       }},
  };
  return table;
}

/// What `read` refuses is said with file and line.
template <class Read>
void at(const toml::node& node, const std::string& origin, const Read& read) {
  try {
    read();
  } catch (const ConfigError& error) {
    throw ConfigError(fmt::format("{}:{}: {}", origin, node.source().begin.line, error.what()));
  }
}

toml::table table_of(const Plan::Entry& entry) {
  toml::table table{{"match", entry.match}};
  for (const auto& [axis, placement] : entry.placements) table.insert(axis, to_string(placement));
  toml::table outputs;
  for (const auto& [axis, placement] : entry.outputs) outputs.insert(axis, to_string(placement));
  if (!outputs.empty()) table.insert("output", std::move(outputs));
  return table;
}

toml::array array_of(const StagePatterns& stages) {
  toml::array array;
  for (const std::vector<std::string>& stage : stages) {
    toml::array patterns;
    for (const std::string& pattern : stage) patterns.push_back(pattern);
    array.push_back(std::move(patterns));
  }
  return array;
}

}  // namespace

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
    if (key.str() == "parameters" && node.is_array_of_tables()) {
      for (const toml::node& item : *node.as_array()) at(item, origin, [&] { add_entry(plan, *item.as_table()); });
      continue;
    }
    const auto reader = readers().find(key.str());
    check<ConfigError>(reader != readers().end(),
                       "{}:{}: \"{}\" is not known in a plan; allowed: zero, prefetch_bytes, reduce_dtype, recompute, "
                       "stages, stage_order, [[parameters]] tables with match and axes",
                       origin, node.source().begin.line, key.str());
    at(node, origin, [&] { reader->second(plan, node, root); });
  }
  return plan;
}

std::string Plan::to_toml() const {
  toml::table root;
  if (zero_ != 0) root.insert("zero", zero_);
  if (prefetch_bytes_ != 0) root.insert("prefetch_bytes", prefetch_bytes_);
  if (reduce_dtype_) root.insert("reduce_dtype", module::word_of_reduce_dtype(*reduce_dtype_));
  if (recompute_ != Recompute::kNone) root.insert("recompute", to_string(recompute_));
  if (!stages_.empty()) root.insert("stages", array_of(stages_));
  if (stage_order_ == StageOrder::kV) root.insert("stage_order", "v");
  toml::array parameters;
  for (const Entry& entry : entries_) parameters.push_back(table_of(entry));
  if (!parameters.empty()) root.insert("parameters", std::move(parameters));
  std::ostringstream text;
  text << root << '\n';
  return text.str();
}

}  // namespace tessera
