// SPDX-License-Identifier: Apache-2.0
// The header of a weights file: a strict parser for untrusted JSON, and the proof that it describes the data.
#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "tessera/base/error.h"
#include "tessera/checkpoint/safetensors.h"
#include "checkpoint/dtypes.h"

namespace tessera::checkpoint {
namespace {

constexpr const char* kMetadata = "__metadata__";
constexpr std::size_t kMaxDims = 64;

// Receives the parser's events and accepts exactly {name: {dtype, shape, data_offsets}, "__metadata__": {key: text}}.
// The event interface is used because a document tree would accept duplicate keys and any depth.
class HeaderEvents final : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderEvents(const std::string& file) : file_(file) {}

  SafetensorsHeader header;

  bool start_object(std::size_t /*elements*/) override {
    if (depth_ == 0) return enter();
    if (depth_ != 1) refuse("an object stands where a value of one field should");
    if (in_metadata()) return enter();
    entry_ = TensorEntry{};
    entry_.name = name_;
    fields_.clear();
    return enter();
  }

  bool end_object() override {
    --depth_;
    if (depth_ == 1 && !in_metadata()) {
      for (const char* field : {"dtype", "shape", "data_offsets"}) {
        if (!fields_.contains(field)) refuse(fmt::format("field {} is missing", field));
      }
      header.tensors.push_back(entry_);
    }
    return true;
  }

  bool start_array(std::size_t /*elements*/) override {
    if (depth_ != 2 || in_metadata() || (field_ != "shape" && field_ != "data_offsets")) {
      refuse("a list stands where none belongs");
    }
    numbers_.clear();
    return enter();
  }

  bool end_array() override {
    --depth_;
    if (field_ == "shape") {
      for (const auto number : numbers_) entry_.shape.push_back(static_cast<std::int64_t>(number));
      return true;
    }
    if (numbers_.size() != 2) refuse(fmt::format("data_offsets has {} numbers, not 2", numbers_.size()));
    entry_.begin = numbers_[0];
    entry_.end = numbers_[1];
    return true;
  }

  bool key(string_t& text) override {
    if (depth_ == 1) {
      name_ = text;
      if (!names_.insert(text).second) refuse("the name comes twice");
      metadata_.clear();
      return true;
    }
    field_ = text;
    if (in_metadata()) {
      if (!metadata_.insert(text).second) refuse(fmt::format("key \"{}\" comes twice", printable(text)));
      return true;
    }
    if (text != "dtype" && text != "shape" && text != "data_offsets") {
      refuse(fmt::format("field \"{}\" is not known; there are dtype, shape and data_offsets", printable(text)));
    }
    if (!fields_.insert(text).second) refuse(fmt::format("field {} comes twice", text));
    return true;
  }

  bool string(string_t& text) override {
    if (depth_ == 2 && in_metadata()) {
      header.metadata[field_] = text;
      return true;
    }
    if (depth_ != 2 || field_ != "dtype") refuse("text stands where none belongs");
    const auto dtype = parse_dtype(text);
    if (!dtype) refuse(fmt::format("dtype \"{}\" is not known; allowed: {}", printable(text), all_dtype_names()));
    entry_.dtype = *dtype;
    return true;
  }

  bool number_unsigned(number_unsigned_t number) override {
    if (depth_ != 3) refuse("a number stands where none belongs");
    if (number > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
      refuse(fmt::format("{} = {} is above 2^63 - 1", field_, number));
    }
    if (numbers_.size() == kMaxDims) refuse(fmt::format("{} has more than {} numbers", field_, kMaxDims));
    numbers_.push_back(number);
    return true;
  }

  bool number_integer(number_integer_t number) override {
    refuse(fmt::format("{} is negative where a size or an offset should stand", number));
  }
  bool number_float(number_float_t /*number*/, const string_t& text) override {
    refuse(fmt::format("{} is not an integer below 2^63", printable(text)));
  }
  bool null() override { refuse("null stands where a value should"); }
  bool boolean(bool /*value*/) override { refuse("true or false stands where none belongs"); }
  bool binary(binary_t& /*value*/) override { refuse("binary data stands where a value should"); }
  bool parse_error(std::size_t position, const std::string& /*token*/,
                   const nlohmann::detail::exception& error) override {
    throw FileError(fmt::format("{}: the header is not valid JSON near byte {}: {}", file_, position,
                                printable(std::string_view(error.what()))));
  }

 private:
  [[nodiscard]] bool in_metadata() const { return name_ == kMetadata; }
  bool enter() {
    ++depth_;
    return true;
  }
  [[noreturn]] void refuse(const std::string& problem) const {
    throw FileError(fmt::format("{}: header, \"{}\": {}", file_, printable(name_), problem));
  }

  const std::string& file_;
  int depth_ = 0;
  std::string name_;
  std::string field_;
  TensorEntry entry_;
  std::vector<std::uint64_t> numbers_;
  std::set<std::string> names_;
  std::set<std::string, std::less<>> fields_;
  std::set<std::string> metadata_;
};

// Bytes of the tensor; refuses products beyond 63 bits.
std::uint64_t checked_num_bytes(const TensorEntry& entry, const std::string& file) {
  auto num_bytes = static_cast<std::int64_t>(c10::elementSize(entry.dtype));
  const bool empty = std::find(entry.shape.begin(), entry.shape.end(), 0) != entry.shape.end();
  if (empty) return 0;
  for (const auto dim : entry.shape) {
    check<FileError>(!__builtin_mul_overflow(num_bytes, dim, &num_bytes),
                     "{}: header, \"{}\": shape [{}] needs more than 2^63 bytes", file, printable(entry.name),
                     fmt::join(entry.shape, ", "));
  }
  return static_cast<std::uint64_t>(num_bytes);
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view json, std::uint64_t data_bytes, const std::string& file) {
  check<FileError>(!json.empty() && json.front() == '{', "{}: the header does not start with \"{{\"", file);
  HeaderEvents events(file);
  nlohmann::json::sax_parse(json.begin(), json.end(), &events);
  auto header = std::move(events.header);
  auto& tensors = header.tensors;
  std::sort(tensors.begin(), tensors.end(),
            [](const auto& a, const auto& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
  std::uint64_t expected_begin = 0;
  for (const auto& entry : tensors) {
    const auto name = printable(entry.name);
    check<FileError>(entry.end >= entry.begin, "{}: header, \"{}\": data_offsets [{}, {}] run backwards", file, name,
                     entry.begin, entry.end);
    check<FileError>(entry.begin <= expected_begin, "{}: header, \"{}\": {} bytes before it belong to no tensor", file,
                     name, entry.begin - expected_begin);
    check<FileError>(entry.begin == expected_begin,
                     "{}: header, \"{}\": its data begin at byte {}, inside the tensor before it, which ends at {}",
                     file, name, entry.begin, expected_begin);
    const auto num_bytes = checked_num_bytes(entry, file);
    check<FileError>(num_bytes == entry.end - entry.begin,
                     "{}: header, \"{}\": shape [{}] of {} takes {} bytes, data_offsets give it {}", file, name,
                     fmt::join(entry.shape, ", "), dtype_name(entry.dtype), num_bytes, entry.end - entry.begin);
    expected_begin = entry.end;
  }
  check<FileError>(expected_begin == data_bytes, "{}: the tensors end at byte {} of the data, but the file holds {}",
                   file, expected_begin, data_bytes);
  return header;
}

}  // namespace tessera::checkpoint
