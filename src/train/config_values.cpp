// SPDX-License-Identifier: Apache-2.0
// Parsing, storing and describing the value of one configuration field.
#include "train/config_values.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <utility>

#include "tessera/base/text.h"

namespace tessera::train {
namespace {

using IntList = std::vector<std::int64_t>;

template <class T>
std::optional<T> parse_number(std::string_view text) {
  T value{};
  const auto* end = text.data() + text.size();
  const auto result = std::from_chars(text.data(), end, value);
  if (result.ec != std::errc{} || result.ptr != end || text.empty()) return std::nullopt;
  return value;
}

std::string_view trim(std::string_view text) {
  const auto first = text.find_first_not_of(" \t");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

std::optional<IntList> parse_list(std::string_view text) {
  if (text.size() >= 2 && text.front() == '[' && text.back() == ']') text = text.substr(1, text.size() - 2);
  IntList values;
  for (std::size_t begin = 0; begin <= text.size();) {
    const auto end = std::min(text.find(',', begin), text.size());
    const auto value = parse_number<std::int64_t>(trim(text.substr(begin, end - begin)));
    if (!value) return std::nullopt;
    values.push_back(*value);
    begin = end + 1;
  }
  return values;
}

bool in_range(const ConfigField& field, double value) { return value >= field.min && value <= field.max; }

bool accepts(const ConfigField& field, const std::string& value) {
  return field.allowed.empty() || std::find(field.allowed.begin(), field.allowed.end(), value) != field.allowed.end();
}
bool accepts(const ConfigField& field, std::int64_t value) { return in_range(field, static_cast<double>(value)); }
bool accepts(const ConfigField& field, double value) { return std::isfinite(value) && in_range(field, value); }
bool accepts(const ConfigField&, bool) { return true; }
bool accepts(const ConfigField& field, const IntList& values) {
  return !values.empty() &&
         std::all_of(values.begin(), values.end(), [&](std::int64_t value) { return accepts(field, value); });
}

std::string number_text(double value) { return fmt::format("{}", value); }

// Spellings of other systems, and ours.
constexpr std::array<std::pair<std::string_view, std::string_view>, 39> kForeignWords = {{
    {"tensor_model_parallel_size", "mesh = \"tp=N\""},
    {"tensor_parallel_degree", "mesh = \"tp=N\""},
    {"tp_size", "mesh = \"tp=N\""},
    {"pipeline_model_parallel_size", "mesh = \"pp=N\""},
    {"pipeline_parallel_degree", "mesh = \"pp=N\""},
    {"pp_size", "mesh = \"pp=N\""},
    {"context_parallel_size", "mesh = \"cp=N\""},
    {"data_parallel_size", "mesh = \"dp=N\""},
    {"data_parallel_replicate_degree", "mesh = \"dp_replicate=N\""},
    {"data_parallel_shard_degree", "mesh = \"dp_shard=N\""},
    {"dp_size", "mesh = \"dp=N\""},
    {"zero_stage", "mesh = \"dp_shard=N\""},
    {"micro_batch_size", "batch (global, over all ranks)"},
    {"train_micro_batch_size_per_gpu", "batch (global, over all ranks)"},
    {"per_device_train_batch_size", "batch (global, over all ranks)"},
    {"gradient_accumulation_steps", "microbatches"},
    {"accumulate", "microbatches"},
    {"global_batch_size", "batch"},
    {"train_batch_size", "batch"},
    {"batch_size", "batch"},
    {"learning_rate", "optimizer.lr"},
    {"max_grad_norm", "optimizer.clip"},
    {"gradient_clipping", "optimizer.clip"},
    {"clip_grad", "optimizer.clip"},
    {"num_layers", "model.layers"},
    {"n_layer", "model.layers"},
    {"hidden_size", "model.hidden"},
    {"n_embd", "model.hidden"},
    {"num_attention_heads", "model.heads"},
    {"n_head", "model.heads"},
    {"ffn_hidden_size", "model.ffn"},
    {"vocab_size", "model.vocab"},
    {"seq_length", "model.seq_len"},
    {"block_size", "model.seq_len"},
    {"tie_word_embeddings", "model.tie"},
    {"train_iters", "steps"},
    {"max_steps", "steps"},
    {"num_train_epochs", "epochs"},
    {"dtype", "precision"},
}};

}  // namespace

std::optional<ConfigValue> parse_value(const ConfigField& field, std::string_view text) {
  const auto trimmed = trim(text);
  struct Visitor {
    std::string_view raw, trimmed;
    std::optional<ConfigValue> operator()(std::string& (*)(TrainConfig&)) const { return std::string(raw); }
    std::optional<ConfigValue> operator()(std::int64_t& (*)(TrainConfig&)) const {
      return parse_number<std::int64_t>(trimmed);
    }
    std::optional<ConfigValue> operator()(double& (*)(TrainConfig&)) const { return parse_number<double>(trimmed); }
    std::optional<ConfigValue> operator()(bool& (*)(TrainConfig&)) const {
      if (trimmed == "true") return true;
      if (trimmed == "false") return false;
      return std::nullopt;
    }
    std::optional<ConfigValue> operator()(IntList& (*)(TrainConfig&)) const { return parse_list(trimmed); }
  };
  return std::visit(Visitor{text, trimmed}, field.member);
}

bool store_value(const ConfigField& field, const ConfigValue& value, TrainConfig& config) {
  return std::visit(
      [&](auto* member) {
        auto& target = member(config);
        using T = std::remove_reference_t<decltype(target)>;
        const auto* same = std::get_if<T>(&value);
        if (same != nullptr && accepts(field, *same)) {
          target = *same;
          return true;
        }
        if constexpr (std::is_same_v<T, double>) {
          const auto* integer = std::get_if<std::int64_t>(&value);
          if (integer != nullptr && accepts(field, *integer)) {
            target = static_cast<double>(*integer);
            return true;
          }
        }
        return false;
      },
      field.member);
}

std::string describe_allowed(const ConfigField& field) {
  if (!field.allowed.empty()) return fmt::format("one of {}", fmt::join(field.allowed, ", "));
  struct Visitor {
    std::string operator()(std::string& (*)(TrainConfig&)) const { return "text"; }
    std::string operator()(std::int64_t& (*)(TrainConfig&)) const { return "an integer"; }
    std::string operator()(double& (*)(TrainConfig&)) const { return "a number"; }
    std::string operator()(bool& (*)(TrainConfig&)) const { return "true or false"; }
    std::string operator()(IntList& (*)(TrainConfig&)) const { return "a list of integers"; }
  };
  auto text = std::visit(Visitor{}, field.member);
  if (std::isfinite(field.min)) text += fmt::format(" from {} to {}", number_text(field.min), number_text(field.max));
  if (!field.unit.empty()) text += fmt::format(" ({})", field.unit);
  return text;
}

ConfigValue load_value(const ConfigField& field, const TrainConfig& config) {
  auto copy = config;
  return std::visit([&](auto* member) -> ConfigValue { return member(copy); }, field.member);
}

const ConfigField* find_field(std::string_view key) {
  const auto& fields = config_fields();
  const auto field = std::find_if(fields.begin(), fields.end(), [&](const auto& row) { return row.key == key; });
  return field == fields.end() ? nullptr : &*field;
}

std::string suggest_key(std::string_view key) {
  const auto word = key.substr(key.rfind('.') + 1);
  for (const auto& [foreign, ours] : kForeignWords) {
    if (word == foreign) return fmt::format("here this is {}", ours);
  }
  std::vector<std::string> keys;
  for (const auto& field : config_fields()) {
    if (std::string_view(field.key).substr(field.key.rfind('.') + 1) == word) {
      return fmt::format("did you mean \"{}\"?", field.key);
    }
    keys.push_back(field.key);
  }
  return fmt::format("did you mean \"{}\"?", base::nearest_word(key, keys));
}

std::string format_value(const ConfigField& field, const TrainConfig& config) {
  struct Visitor {
    std::string operator()(const std::string& value) const { return value; }
    std::string operator()(std::int64_t value) const { return fmt::format("{}", value); }
    std::string operator()(double value) const { return number_text(value); }
    std::string operator()(bool value) const { return value ? "true" : "false"; }
    std::string operator()(const IntList& values) const { return fmt::format("{}", fmt::join(values, ",")); }
  };
  return std::visit(Visitor{}, load_value(field, config));
}

}  // namespace tessera::train
