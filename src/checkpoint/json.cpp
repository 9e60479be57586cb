// SPDX-License-Identifier: Apache-2.0
// A strict parser in front of nlohmann's documents.
#include "checkpoint/json.h"

#include <limits>
#include <set>

#include "checkpoint/dtypes.h"
#include "tessera/checkpoint/errors.h"

namespace tessera::checkpoint {
namespace {

constexpr std::size_t kMaxDepth = 8;

/// Looks at every event before the document's builder gets it, which would take names twice, any depth, and numbers
/// beyond 64 bits as floating point.
class StrictEvents final : public nlohmann::json_sax<Json> {
 public:
  StrictEvents(Json& document, const std::string& file) : build_(document), file_(file) {}

  bool null() override { refuse("null stands where a value should"); }
  bool boolean(bool value) override { return build_.boolean(value); }
  bool number_integer(number_integer_t value) override { refuse(fmt::format("the number {} is negative", value)); }
  bool number_unsigned(number_unsigned_t value) override { return build_.number_unsigned(value); }
  bool number_float(number_float_t /*value*/, const string_t& text) override {
    refuse(fmt::format("the number {} is no integer below 2^64", printable(text)));
  }
  bool string(string_t& text) override { return build_.string(text); }
  bool binary(binary_t& /*bytes*/) override { refuse("binary data stand where a value should"); }
  bool start_object(std::size_t count) override {
    enter();
    return build_.start_object(count);
  }
  bool key(string_t& name) override {
    if (!names_.back().insert(name).second) refuse(fmt::format("the name \"{}\" comes twice", printable(name)));
    return build_.key(name);
  }
  bool end_object() override {
    names_.pop_back();
    return build_.end_object();
  }
  bool start_array(std::size_t count) override {
    enter();
    return build_.start_array(count);
  }
  bool end_array() override {
    names_.pop_back();
    return build_.end_array();
  }
  bool parse_error(std::size_t position, const std::string& /*token*/, const nlohmann::detail::exception&) override {
    refuse(fmt::format("no valid JSON near byte {}", position));
  }

 private:
  void enter() {
    if (names_.size() == kMaxDepth) refuse(fmt::format("it is nested deeper than {} levels", kMaxDepth));
    names_.emplace_back();
  }
  [[noreturn]] void refuse(const std::string& problem) const {
    throw CheckpointCorrupt(fmt::format("{}: {}", file_, problem));
  }

  nlohmann::detail::json_sax_dom_parser<Json> build_;
  const std::string& file_;
  std::vector<std::set<std::string>> names_;  ///< per open object or list
};

}  // namespace

Json parse_strictly(std::string_view text, const std::string& file) {
  Json document;
  StrictEvents events(document, file);
  Json::sax_parse(text.begin(), text.end(), &events);
  return document;
}

const JsonPlace& JsonPlace::has_exactly(std::initializer_list<std::string_view> fields) const {
  if (!value_.is_object()) refuse("an object should stand here");
  for (const auto& item : value_.items()) {
    bool known = false;
    for (const std::string_view field : fields) known = known || field == item.key();
    if (!known) refuse(fmt::format("field \"{}\" is not known; there are {}", printable(item.key()), fmt::join(fields, ", ")));
  }
  for (const std::string_view field : fields) {
    if (!value_.contains(field)) refuse(fmt::format("field {} is missing", field));
  }
  return *this;
}

JsonPlace JsonPlace::operator[](const char* field) const {
  if (!value_.is_object() || !value_.contains(field)) refuse(fmt::format("field {} is missing", field));
  return {value_[field], file_, path_.empty() ? field : path_ + "." + field};
}

std::vector<JsonPlace> JsonPlace::items() const {
  if (!value_.is_array()) refuse("a list should stand here");
  std::vector<JsonPlace> places;
  for (std::size_t i = 0; i < value_.size(); ++i) places.emplace_back(value_[i], file_, fmt::format("{}[{}]", path_, i));
  return places;
}

std::vector<std::pair<std::string, JsonPlace>> JsonPlace::members() const {
  if (!value_.is_object()) refuse("an object should stand here");
  std::vector<std::pair<std::string, JsonPlace>> places;
  for (const auto& item : value_.items()) {
    places.emplace_back(item.key(), JsonPlace(item.value(), file_, path_ + "." + printable(item.key())));
  }
  return places;
}

std::string JsonPlace::text() const {
  if (!value_.is_string()) refuse("a text should stand here");
  return value_.get<std::string>();
}

std::int64_t JsonPlace::number() const {
  if (!value_.is_number_unsigned()) refuse("a number should stand here");
  const auto number = value_.get<std::uint64_t>();
  if (number > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
    refuse(fmt::format("{} is above 2^63 - 1", number));
  }
  return static_cast<std::int64_t>(number);
}

std::vector<std::int64_t> JsonPlace::numbers() const {
  std::vector<std::int64_t> result;
  for (const JsonPlace& item : items()) result.push_back(item.number());
  return result;
}

void JsonPlace::refuse(const std::string& problem) const {
  throw CheckpointCorrupt(fmt::format("{}: {}{}{}", file_, path_, path_.empty() ? "" : ": ", problem));
}

}  // namespace tessera::checkpoint
