// SPDX-License-Identifier: Apache-2.0
// A folder that appears when it is finished.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "checkpoint/dtypes.h"
#include "checkpoint/manifest.h"
#include "checkpoint/save.h"
#include "tessera/checkpoint/errors.h"

namespace tessera::checkpoint {
namespace {

constexpr std::size_t kRandomCharacters = 6;

/// ".NAME.tmp-", and six characters.
std::string unfinished_prefix(const std::filesystem::path& folder) {
  return "." + folder.filename().string() + ".tmp-";
}

bool is_unfinished(const std::string& name) {
  const std::size_t mark = name.rfind(".tmp-");
  return name.starts_with('.') && mark != std::string::npos && name.size() == mark + 5 + kRandomCharacters;
}

Descriptor open_folder(const std::string& path) {
  return Descriptor(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
}

/// The kernel lets go of it when the process that has it ends, however it ends.
bool try_lock(const Descriptor& folder) { return ::flock(folder.number(), LOCK_EX | LOCK_NB) == 0; }

/// Whatever may be replaced: nothing, an empty folder, or a checkpoint and nothing else.
void check_replaceable(const std::filesystem::path& folder) {
  if (!std::filesystem::exists(std::filesystem::symlink_status(folder))) return;
  check<ConfigError>(std::filesystem::is_directory(std::filesystem::symlink_status(folder)),
                     "{}: is there and no folder; name another", folder.string());
  for (const std::string& name : names_in(folder)) {
    check<ConfigError>(name == kManifestName || name == kDigestName || is_shard_name(name),
                       "{}: has \"{}\", so it is no checkpoint, and is not replaced; name another folder", folder.string(),
                       printable(name));
  }
}

/// Removes what jobs left that ended while they saved.
void remove_left_over(Files& files, const std::filesystem::path& folder) {
  const std::string parent = folder_of(folder);
  for (const std::string& name : names_in(parent)) {
    if (!is_unfinished(name)) continue;
    const std::string path = (std::filesystem::path(parent) / name).string();
    const Descriptor other = open_folder(path);
    if (!other.is_open()) continue;
    if (try_lock(other)) {
      files.remove(path);
    } else {
      check<CheckpointBusy>(!name.starts_with(unfinished_prefix(folder)),
                            "{}: another job is writing it; wait for it, or name another folder", folder.string());
    }
  }
}

}  // namespace

Unfinished begin_folder(Files& files, const std::filesystem::path& folder) {
  const std::string parent = folder_of(folder);
  std::error_code error;
  std::filesystem::create_directories(parent, error);
  const Descriptor looking = open_folder(parent);
  check<FileError>(looking.is_open(), "{}: cannot open the folder: {}; name one that can be written", parent,
                   std::strerror(errno));
  // Held until our folder is locked: nobody takes it for left over.
  check<FileError>(::flock(looking.number(), LOCK_EX) == 0, "{}: cannot lock the folder: {}", parent, std::strerror(errno));
  check_replaceable(folder);
  remove_left_over(files, folder);
  const std::string path = files.create_folder((std::filesystem::path(parent) / unfinished_prefix(folder)).string());
  Unfinished unfinished{path, open_folder(path)};
  check<FileError>(try_lock(unfinished.lock), "{}: cannot lock the folder: {}", path, std::strerror(errno));
  return unfinished;
}

void publish_folder(Files& files, const std::string& unfinished, const std::filesystem::path& folder) {
  const std::string parent = folder_of(folder);
  if (std::filesystem::exists(folder)) {
    files.exchange(unfinished, folder.string());
    files.flush_folder(parent);
    files.remove(unfinished);  // the earlier checkpoint now
  } else {
    files.rename(unfinished, folder.string());
  }
  files.flush_folder(parent);
}

}  // namespace tessera::checkpoint
