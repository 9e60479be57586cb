// SPDX-License-Identifier: Apache-2.0
// System calls behind reading at an offset and publishing a new file.
#include "train/weights/descriptor.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "tessera/base/error.h"

namespace tessera::train {
namespace {

std::filesystem::path folder_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

// mkostemp picks a name nobody can foresee, mode 0600.
int open_temporary(std::string& name) { return ::mkostemp(name.data(), O_CLOEXEC); }

[[noreturn]] void fail(const std::filesystem::path& path, const char* action) {
  throw FileError(fmt::format("{}: cannot {}: {}", path.string(), action, std::strerror(errno)));
}

}  // namespace

Descriptor::~Descriptor() {
  if (number_ >= 0) ::close(number_);
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

NewFile::NewFile(std::filesystem::path path)
    : path_(std::move(path)), temporary_(path_.string() + ".XXXXXX"), file_(open_temporary(temporary_)) {
  if (file_.number() < 0) fail(path_, "create a file beside it");
}

NewFile::~NewFile() {
  if (!published_ && file_.number() >= 0) ::unlink(temporary_.c_str());
}

void NewFile::append(const void* bytes, std::size_t num_bytes) {
  const auto* in = static_cast<const char*>(bytes);
  while (num_bytes > 0) {
    const auto written = ::write(file_.number(), in, num_bytes);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail(path_, "write");
    in += written;
    num_bytes -= static_cast<std::size_t>(written);
  }
}

void NewFile::publish() {
  if (::fsync(file_.number()) != 0) fail(path_, "flush the file to the disk");
  if (std::rename(temporary_.c_str(), path_.c_str()) != 0) fail(path_, "rename the finished file");
  published_ = true;
  const Descriptor folder(::open(folder_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (folder.number() < 0 || ::fsync(folder.number()) != 0) fail(path_, "flush its folder to the disk");
}

}  // namespace tessera::train
