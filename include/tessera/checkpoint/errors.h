// SPDX-License-Identifier: Apache-2.0
// What can be wrong with a checkpoint.
#pragma once

#include "tessera/base/error.h"

namespace tessera {

/// A checkpoint is damaged or incomplete: names the file, and the tensor if it is one.
class CheckpointCorrupt : public FileError {
 public:
  using FileError::FileError;
  [[nodiscard]] const char* kind() const noexcept override { return "checkpoint_corrupt"; }
};

/// A checkpoint is whole, but of something else than the program has: names what was saved and what is wanted.
class CheckpointMismatch : public ConfigError {
 public:
  using ConfigError::ConfigError;
  [[nodiscard]] const char* kind() const noexcept override { return "checkpoint_mismatch"; }
};

/// Another job writes into the same folder.
class CheckpointBusy : public ConfigError {
 public:
  using ConfigError::ConfigError;
  [[nodiscard]] const char* kind() const noexcept override { return "busy"; }
};

}  // namespace tessera
