// SPDX-License-Identifier: Apache-2.0
// JSON from a file that nobody vouches for, and fields of it that must be there.
#pragma once

#include <nlohmann/json.hpp>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

namespace tessera::checkpoint {

using Json = nlohmann::ordered_json;

/// Accepts no name twice within an object, no number but integers from 0 to 2^64 - 1, and no nesting beyond eight
/// levels. Throws CheckpointCorrupt naming `file`.
[[nodiscard]] Json parse_strictly(std::string_view text, const std::string& file);

/// A value of the document and where it stands ("tensors[3].chunks[0].offset"), for messages.
class JsonPlace {
 public:
  JsonPlace(const Json& value, const std::string& file, std::string path) : value_(value), file_(file), path_(std::move(path)) {}

  /// Refuses, by exception, everything that is no object of exactly these fields.
  const JsonPlace& has_exactly(std::initializer_list<std::string_view> fields) const;
  [[nodiscard]] JsonPlace operator[](const char* field) const;
  [[nodiscard]] std::vector<JsonPlace> items() const;                            ///< of a list
  [[nodiscard]] std::vector<std::pair<std::string, JsonPlace>> members() const;  ///< of an object
  [[nodiscard]] std::string text() const;
  /// At most 2^63 - 1.
  [[nodiscard]] std::int64_t number() const;
  [[nodiscard]] std::vector<std::int64_t> numbers() const;
  /// Throws CheckpointCorrupt naming the file and this place.
  [[noreturn]] void refuse(const std::string& problem) const;

 private:
  const Json& value_;
  const std::string& file_;
  std::string path_;
};

}  // namespace tessera::checkpoint
