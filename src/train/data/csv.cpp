// SPDX-License-Identifier: Apache-2.0
// Labelled rows of numbers from CSV files, the digits among them.
#include <charconv>
#include <cmath>
#include <optional>
#include <string_view>

#include "tessera/base/error.h"
#include "train/data/file_bytes.h"
#include "train/data/readers.h"

namespace tessera::train {
namespace {

std::string_view trim(std::string_view text) {
  const auto first = text.find_first_not_of(" \t\r");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t\r") - first + 1);
}

std::optional<double> parse_cell(std::string_view text) {
  double value = 0.0;
  const auto* end = text.data() + text.size();
  const auto result = std::from_chars(text.data(), end, value);
  if (text.empty() || result.ec != std::errc{} || result.ptr != end || !std::isfinite(value)) return std::nullopt;
  return value;
}

// Collects rows; knows file and line for its messages.
class CsvTable {
 public:
  CsvTable(std::string file, std::int64_t classes) : file_(std::move(file)), classes_(classes) {}

  void add_line(std::string_view line, std::int64_t line_number) {
    const auto text = trim(line);
    if (text.empty()) return;
    if (num_lines_++ == 0 && !parse_cell(trim(text.substr(0, text.find(','))))) return;  // a header
    const auto before = numbers_.size();
    for (std::size_t begin = 0; begin <= text.size();) {
      const auto end = std::min(text.find(',', begin), text.size());
      add_cell(trim(text.substr(begin, end - begin)), line_number, numbers_.size() - before + 1);
      begin = end + 1;
    }
    finish_row(static_cast<std::int64_t>(numbers_.size() - before), line_number);
  }

  RawSamples finish() {
    check<FileError>(!labels_.empty(), "{}: the file holds no rows of numbers", file_);
    const auto rows = static_cast<std::int64_t>(labels_.size());
    return {torch::tensor(numbers_, torch::kFloat32).view({rows, columns_ - 1}), torch::tensor(labels_, torch::kInt64)};
  }

 private:
  void add_cell(std::string_view cell, std::int64_t line_number, std::size_t column) {
    const auto value = parse_cell(cell);
    check<FileError>(value.has_value(), "{}:{}: \"{}\" in column {} is not a finite number", file_, line_number,
                     cell.substr(0, 40), column);
    numbers_.push_back(static_cast<float>(*value));
  }

  void finish_row(std::int64_t columns, std::int64_t line_number) {
    if (columns_ == 0) {
      check<FileError>(columns >= 2, "{}:{}: a row needs at least one number and a label; this one has {} column",
                       file_, line_number, columns);
      columns_ = columns;
    }
    check<FileError>(columns == columns_, "{}:{}: the row has {} columns, the ones before it have {}", file_,
                     line_number, columns, columns_);
    const auto label = static_cast<double>(numbers_.back());
    numbers_.pop_back();
    check<FileError>(label == std::floor(label) && label >= 0.0 && label < static_cast<double>(classes_),
                     "{}:{}: label {} in the last column; allowed: the integers 0 to {}, one per output of the model",
                     file_, line_number, label, classes_ - 1);
    labels_.push_back(static_cast<std::int64_t>(label));
  }

  std::string file_;
  std::int64_t classes_;
  std::int64_t num_lines_ = 0;
  std::int64_t columns_ = 0;
  std::vector<float> numbers_;
  std::vector<std::int64_t> labels_;
};

std::filesystem::path find_digits(const std::string& configured) {
  if (!configured.empty()) return configured;
  const std::filesystem::path standard = ".data/digits.csv";
  const auto beside_sources = std::filesystem::path(TESSERA_SOURCE_DIR) / standard;
  if (std::filesystem::exists(standard)) return standard;
  check<FileError>(std::filesystem::exists(beside_sources),
                   "digits: there is no {} here or in the source folder; run `make setup`, or name the file with "
                   "data.digits_file",
                   standard.string());
  return beside_sources;
}

}  // namespace

RawSamples read_csv(const std::filesystem::path& path, std::int64_t classes) {
  const auto bytes = read_file_bytes(path);
  CsvTable table(path.string(), classes);
  const std::string_view text = bytes;
  std::int64_t line_number = 0;
  for (std::size_t begin = 0; begin < text.size();) {
    const auto end = std::min(text.find('\n', begin), text.size());
    table.add_line(text.substr(begin, end - begin), ++line_number);
    begin = end + 1;
  }
  return table.finish();
}

RawSamples read_digits(const std::string& configured, std::int64_t classes) {
  constexpr std::int64_t kNumPixels = 64;
  constexpr float kLargestPixel = 16.0F;
  const auto path = find_digits(configured);
  auto samples = read_csv(path, classes);
  check<FileError>(samples.input.size(1) == kNumPixels, "{}: {} numbers before the label; the digits have {} pixels",
                   path.string(), samples.input.size(1), kNumPixels);
  const auto largest = samples.input.abs().max().item<float>();
  check<FileError>(largest <= kLargestPixel && samples.input.min().item<float>() >= 0.0F,
                   "{}: a pixel lies outside 0 to {} (largest magnitude {})", path.string(), kLargestPixel, largest);
  samples.input.div_(kLargestPixel);
  return samples;
}

}  // namespace tessera::train
