// SPDX-License-Identifier: Apache-2.0
// Saving through file operations of the caller's.
#pragma once

#include "checkpoint/files.h"
#include "tessera/checkpoint/checkpoint.h"

namespace tessera::checkpoint {

/// tessera::save() with `files` between it and the file system.
void save_through(Files& files, const std::filesystem::path& folder, const State& state, const SaveOptions& options);

/// Removes unfinished folders that nobody writes any more. Throws CheckpointBusy if somebody writes `folder`.
/// Returns a new folder for what `folder` shall be, and the lock on it.
struct Unfinished {
  std::string path;
  Descriptor lock;
};
[[nodiscard]] Unfinished begin_folder(Files& files, const std::filesystem::path& folder);

/// Gives the finished folder its name, in one step, and makes that last.
void publish_folder(Files& files, const std::string& unfinished, const std::filesystem::path& folder);

}  // namespace tessera::checkpoint
