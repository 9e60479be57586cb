// SPDX-License-Identifier: Apache-2.0
// One configuration value on its way between text, file and field.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "tessera/train/config.h"

namespace tessera::train {

/// A value before its field is known to accept it.
using ConfigValue = std::variant<std::string, std::int64_t, double, bool, std::vector<std::int64_t>>;

/// Reads text as the type of `field`; nothing if it cannot be read so.
[[nodiscard]] std::optional<ConfigValue> parse_value(const ConfigField& field, std::string_view text);

/// Stores `value` if the field accepts its type and range. Returns whether it did.
[[nodiscard]] bool store_value(const ConfigField& field, const ConfigValue& value, TrainConfig& config);

/// What the field accepts, for messages: "an integer from 1 to 1000", "one of adamw, adam, sgd".
[[nodiscard]] std::string describe_allowed(const ConfigField& field);

/// The value of `field` in `config`.
[[nodiscard]] ConfigValue load_value(const ConfigField& field, const TrainConfig& config);

/// The row of the table with this key, or null.
[[nodiscard]] const ConfigField* find_field(std::string_view key);

/// The sentence that names our word for an unknown key.
[[nodiscard]] std::string suggest_key(std::string_view key);

/// What does not fit together in a tree whose fields are legal one by one: (key, problem) pairs.
[[nodiscard]] std::vector<std::pair<std::string, std::string>> find_contradictions(const TrainConfig& config);

}  // namespace tessera::train
