// SPDX-License-Identifier: Apache-2.0
// Saving and loading what a program is made of.
//
// A checkpoint is a folder: safetensors files, which any reader of that format opens, and a manifest that says where every
// element of every tensor is. docs/checkpoint-format.md describes it byte by byte.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "tessera/checkpoint/errors.h"
#include "tessera/checkpoint/manifest.h"
#include "tessera/checkpoint/state.h"

namespace tessera {

struct SaveOptions {
  /// Bytes that one digest covers, and that a rank that loads reads at once, besides its own part.
  std::int64_t block_bytes = std::int64_t{16} << 20;
};

/// Writes everything in `state` into the new folder `folder`: it is there completely or not at all, whenever the job or the
/// machine stops. A checkpoint of that name is replaced in one step.
///
/// Shapes  each rank writes what it holds; of several ranks that hold the same, one does
/// Order   collective, if something in the state is on a mesh; all ranks see the same file system
/// Memory  a block, where tensors are not in dense memory of the CPU
/// Throws  FileError for a file system that does not do what it is asked, on all ranks: earlier checkpoints are as they
///         were. CheckpointBusy while another job writes this folder; ConfigError if it is something else than a checkpoint
void save(const std::filesystem::path& folder, const State& state, const SaveOptions& options = {});

struct LoadOptions {
  /// Names, or what stands before a dot in names: only these are loaded, whatever else state and checkpoint have. Empty: all.
  ///   {"model"}          the weights alone
  ///   {"model.encoder"}  of a part of the module
  std::vector<std::string> only{};
};

/// Reads everything in `state` from a checkpoint, on whatever mesh that was written. All or nothing: names, shapes, dtypes,
/// sizes and digests are proven on all ranks before the first tensor is written.
///
/// Shapes  each rank reads the blocks that have a part of what it holds
/// Order   collective, as save(). Between steps: no gradient may be under way
/// Memory  one block
/// Throws  on all ranks alike, and nothing has changed: CheckpointMismatch listing the first ten names, shapes, dtypes and
///         values that differ, and their count; CheckpointCorrupt naming file and tensor; FileError if there is no checkpoint
void load(const std::filesystem::path& folder, State& state, const LoadOptions& options = {});

}  // namespace tessera
