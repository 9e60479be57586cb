// SPDX-License-Identifier: Apache-2.0
// What configuration checks need to know about models and data sources without building either.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tessera::train {

/// One row of the table of data sources.
struct SourceKind {
  std::string word;
  enum class Path { kNone, kOptional, kRequired } path;
  /// Whether a model of tokens, or one of vectors and images, can be trained on it.
  bool for_tokens;
  bool for_vectors;
};

/// "csv:data/iris.csv" taken apart.
struct Source {
  const SourceKind* kind = nullptr;
  std::string path;
};

[[nodiscard]] const std::vector<SourceKind>& source_kinds();

/// Takes `text` apart. Throws ConfigError naming the nearest known source, or a path that is missing or not wanted.
[[nodiscard]] Source parse_source(const std::string& text);

/// The legal sources of one kind of model, for messages: "text, text:PATH, synthetic".
[[nodiscard]] std::string describe_sources(bool tokens);

[[nodiscard]] const std::vector<std::string>& model_names();
/// Whether the named model is trained on tokens.
[[nodiscard]] bool model_takes_tokens(std::string_view name);

}  // namespace tessera::train
