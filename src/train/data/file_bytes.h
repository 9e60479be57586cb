// SPDX-License-Identifier: Apache-2.0
// A whole file in memory.
#pragma once

#include <filesystem>
#include <string>

namespace tessera::train {

/// Throws FileError if the file is missing, no regular file, empty or unreadable.
[[nodiscard]] std::string read_file_bytes(const std::filesystem::path& path);

}  // namespace tessera::train
