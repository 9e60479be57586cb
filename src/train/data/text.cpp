// SPDX-License-Identifier: Apache-2.0
// Text as bytes: one file or a folder of them, cut into windows.
#include <algorithm>
#include <fstream>
#include <system_error>

#include "tessera/base/error.h"
#include "train/data/file_bytes.h"
#include "train/data/readers.h"

namespace tessera::train {
namespace {

// Symbolic links are left out, so that a folder of a text and its aliases counts each text once.
std::vector<std::filesystem::path> regular_files(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    if (entry.is_regular_file() && !entry.is_symlink()) files.push_back(entry.path());
  }
  check<FileError>(!error, "{}: the folder cannot be read: {}", folder.string(), error.message());
  check<FileError>(!files.empty(), "{}: the folder holds no regular file to train on", folder.string());
  std::sort(files.begin(), files.end());
  return files;
}

std::string read_text(const std::filesystem::path& path) {
  auto bytes = read_file_bytes(path);
  const auto nul = bytes.find('\0');
  check<FileError>(nul == std::string::npos, "{}: byte {} is NUL, so this is no text; name a text file", path.string(),
                   nul);
  return bytes;
}

}  // namespace

std::string read_file_bytes(const std::filesystem::path& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  check<FileError>(std::filesystem::exists(status), "{}: there is no such file", path.string());
  check<FileError>(std::filesystem::is_regular_file(status), "{}: this is no regular file", path.string());
  const auto num_bytes = std::filesystem::file_size(path, error);
  check<FileError>(!error && num_bytes > 0, "{}: the file is empty", path.string());
  std::string bytes(num_bytes, '\0');
  std::ifstream file(path, std::ios::binary);
  file.read(bytes.data(), static_cast<std::streamsize>(num_bytes));
  check<FileError>(file.good(), "{}: the file cannot be read; check its permissions", path.string());
  return bytes;
}

torch::Tensor read_text_tokens(const std::filesystem::path& path) {
  std::string text;
  if (std::filesystem::is_directory(path)) {
    for (const auto& file : regular_files(path)) text += read_text(file);
  } else {
    text = read_text(path);
  }
  const auto num_bytes = static_cast<std::int64_t>(text.size());
  return torch::from_blob(text.data(), {num_bytes}, torch::kUInt8).clone();
}

RawSamples cut_windows(const torch::Tensor& tokens, std::int64_t width, std::int64_t vocab, const std::string& source) {
  check<FileError>(tokens.size(0) > width, "{}: {} tokens do not fill one window of model.seq_len + 1 = {}", source,
                   tokens.size(0), width + 1);
  const auto largest = tokens.max().item<std::int64_t>();
  check<FileError>(largest < vocab, "{}: token {} is outside the vocabulary; set model.vocab to at least {} (it is {})",
                   source, largest, largest + 1, vocab);
  const auto windows = (tokens.size(0) - 1) / width;
  return {tokens.slice(0, 0, windows * width).view({windows, width}),
          tokens.slice(0, 1, windows * width + 1).view({windows, width})};
}

}  // namespace tessera::train
