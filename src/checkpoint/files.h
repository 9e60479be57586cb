// SPDX-License-Identifier: Apache-2.0
// Files that are there completely or not at all, and the operations of a file system that this takes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace tessera::checkpoint {

/// A descriptor that is closed when its owner goes.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor();
  Descriptor(Descriptor&& other) noexcept;
  Descriptor& operator=(Descriptor&& other) noexcept;
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  [[nodiscard]] int number() const noexcept { return number_; }
  [[nodiscard]] bool is_open() const noexcept { return number_ >= 0; }

 private:
  int number_ = -1;
};

/// Reads exactly `num_bytes` from `offset` on. Throws FileError.
void read_at(const Descriptor& file, void* target, std::uint64_t num_bytes, std::uint64_t offset,
             const std::string& name);

/// What changes a file system, one method per step. Tests derive from it to fail or stop at any of them.
/// Throws  FileError naming the path and the system's reason
class Files {
 public:
  virtual ~Files() = default;
  /// A new file of mode 0600; refuses an existing one.
  virtual Descriptor create(const std::string& path);
  virtual void write(const Descriptor& file, const void* bytes, std::size_t num_bytes, const std::string& path);
  /// Flushes to the disk. Never retried after a failure: the kernel may have dropped the pages already.
  virtual void flush(const Descriptor& file, const std::string& path);
  /// A new folder of mode 0700 at `path` plus six characters that nobody can foresee; returns its path.
  virtual std::string create_folder(const std::string& path);
  virtual void flush_folder(const std::string& path);
  virtual void rename(const std::string& from, const std::string& to);
  /// The two names change places in one step.
  virtual void exchange(const std::string& a, const std::string& b);
  /// A file, or a folder with all that is in it; nothing if it is not there.
  virtual void remove(const std::string& path);
};

/// The real ones. Has no state.
[[nodiscard]] Files& real_files();

/// A file that is written from its beginning to its end.
class OutputFile {
 public:
  OutputFile(Files& files, std::string path) : files_(files), path_(std::move(path)), file_(files_.create(path_)) {}
  void append(const void* bytes, std::size_t num_bytes) { files_.write(file_, bytes, num_bytes, path_); }
  void flush() { files_.flush(file_, path_); }

 private:
  Files& files_;
  std::string path_;
  Descriptor file_;
};

/// A file under construction: a temporary name beside the final one, flushed and renamed by `publish`, removed by the
/// destructor otherwise.
class NewFile {
 public:
  explicit NewFile(std::filesystem::path path, Files& files = real_files());
  ~NewFile();
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  void append(const void* bytes, std::size_t num_bytes) { file_.append(bytes, num_bytes); }
  /// Flushes the data, renames, flushes the folder.
  void publish();

 private:
  Files& files_;
  std::string path_;
  std::string folder_;  ///< of the unfinished file
  OutputFile file_;
  bool published_ = false;
};

/// The folder that `path` lies in.
[[nodiscard]] std::string folder_of(const std::filesystem::path& path);

/// Names in a folder, sorted; none if it is not there.
[[nodiscard]] std::vector<std::string> names_in(const std::filesystem::path& folder);

}  // namespace tessera::checkpoint
