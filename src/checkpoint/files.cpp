// SPDX-License-Identifier: Apache-2.0
// System calls behind reading at an offset and publishing new files.
#include "checkpoint/files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "tessera/base/error.h"

namespace tessera::checkpoint {
namespace {

[[noreturn]] void fail(const std::string& path, const char* action) {
  throw FileError(fmt::format("{}: cannot {}: {}", path, action, std::strerror(errno)));
}

}  // namespace

Descriptor::~Descriptor() {
  if (number_ >= 0) ::close(number_);
}

Descriptor::Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  std::swap(number_, other.number_);
  return *this;
}

void read_at(const Descriptor& file, void* target, std::uint64_t num_bytes, std::uint64_t offset,
             const std::string& name) {
  auto* out = static_cast<char*>(target);
  while (num_bytes > 0) {
    const auto got = ::pread(file.number(), out, num_bytes, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(name, "read");
    check<FileError>(got > 0, "{}: the file ends at byte {}, {} bytes too early", name, offset, num_bytes);
    out += got;
    num_bytes -= static_cast<std::uint64_t>(got);
    offset += static_cast<std::uint64_t>(got);
  }
}

Descriptor Files::create(const std::string& path) {
  Descriptor file(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!file.is_open()) fail(path, "create the file");
  return file;
}

void Files::write(const Descriptor& file, const void* bytes, std::size_t num_bytes, const std::string& path) {
  const auto* in = static_cast<const char*>(bytes);
  while (num_bytes > 0) {
    const auto written = ::write(file.number(), in, num_bytes);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail(path, "write");
    in += written;
    num_bytes -= static_cast<std::size_t>(written);
  }
}

void Files::flush(const Descriptor& file, const std::string& path) {
  if (::fsync(file.number()) != 0) fail(path, "flush the file to the disk");
}

std::string Files::create_folder(const std::string& path) {
  std::string name = path + "XXXXXX";
  if (::mkdtemp(name.data()) == nullptr) fail(path, "create a folder");
  return name;
}

void Files::flush_folder(const std::string& path) {
  const Descriptor folder(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder.is_open() || ::fsync(folder.number()) != 0) fail(path, "flush the folder to the disk");
}

void Files::rename(const std::string& from, const std::string& to) {
  if (std::rename(from.c_str(), to.c_str()) != 0) fail(to, "rename what was finished");
}

void Files::exchange(const std::string& a, const std::string& b) {
  if (::renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) != 0) {
    fail(b, "replace in one step (a file system without RENAME_EXCHANGE; take a name that is free)");
  }
}

void Files::remove(const std::string& path) {
  std::error_code error;
  std::filesystem::remove_all(path, error);
  check<FileError>(!error, "{}: cannot remove: {}", path, error.message());
}

Files& real_files() {
  static Files files;
  return files;
}

// A folder of its own, so that a name that nobody can foresee and refusing an existing file are one step each.
NewFile::NewFile(std::filesystem::path path, Files& files)
    : files_(files),
      path_(path.string()),
      folder_(files_.create_folder(path_ + ".")),
      file_(files_, (std::filesystem::path(folder_) / path.filename()).string()) {}

NewFile::~NewFile() {
  try {
    if (!published_) files_.remove(folder_);
  } catch (const FileError&) {  // the next one has another name
  }
}

void NewFile::publish() {
  file_.flush();
  files_.rename((std::filesystem::path(folder_) / std::filesystem::path(path_).filename()).string(), path_);
  published_ = true;
  files_.remove(folder_);
  files_.flush_folder(folder_of(path_));
}

std::string folder_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path().string() : std::string(".");
}

std::vector<std::string> names_in(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace tessera::checkpoint
