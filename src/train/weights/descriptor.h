// SPDX-License-Identifier: Apache-2.0
// Owns a file descriptor, and writes whole files that are there completely or not at all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>

namespace tessera::train {

/// A descriptor that is closed when its owner goes.
class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor();
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  [[nodiscard]] int number() const noexcept { return number_; }

 private:
  int number_;
};

/// Reads exactly `num_bytes` from `offset` on. Throws FileError.
void read_at(const Descriptor& file, void* target, std::uint64_t num_bytes, std::uint64_t offset,
             const std::string& name);

/// A file under construction: a temporary name beside the final one, flushed and renamed by `publish`, removed by the
/// destructor otherwise. A failed flush is never retried: the kernel may have dropped the pages already.
class NewFile {
 public:
  /// Throws FileError naming the path and the system's reason.
  explicit NewFile(std::filesystem::path path);
  ~NewFile();
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  void append(const void* bytes, std::size_t num_bytes);
  /// Flushes the data, renames, flushes the folder.
  void publish();

 private:
  std::filesystem::path path_;
  std::string temporary_;
  Descriptor file_;
  bool published_ = false;
};

}  // namespace tessera::train
