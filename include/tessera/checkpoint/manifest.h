// SPDX-License-Identifier: Apache-2.0
// The table of contents of a checkpoint: which tensors and values it holds, and where their bytes are.
// docs/checkpoint-format.md describes the files.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <variant>
#include <vector>

namespace tessera::checkpoint {

/// What is not a tensor. Written as text, so that reading gives the same bits.
using Value = std::variant<std::int64_t, std::uint64_t, double, bool, std::string>;

/// "120", "0.001", "true".
[[nodiscard]] std::string to_string(const Value& value);

/// A part of a tensor that lies in one file: the box from `offset` on, of `length` elements per dim, row-major.
struct Chunk {
  std::string file;
  std::string key;  ///< its name in the file
  std::vector<std::int64_t> offset;
  std::vector<std::int64_t> length;
  /// Rows (of dim 0) per block; the last block may have fewer. A tensor without dims is one block of one row.
  std::int64_t rows_per_block = 1;
  /// XXH3-128 of each block, 32 hexadecimal digits.
  std::vector<std::string> digests;
};

/// A tensor as the program knows it, whatever mesh it lay on.
struct SavedTensor {
  std::string name;
  std::string role;  ///< "parameter", "buffer", "optimizer", "average", "random", "tensor"
  c10::ScalarType dtype = c10::ScalarType::Float;
  std::vector<std::int64_t> shape;
  std::vector<Chunk> chunks;  ///< every element in exactly one
  [[nodiscard]] std::int64_t num_bytes() const noexcept;
};

struct ShardFile {
  std::string name;
  std::int64_t num_bytes = 0;
  std::string header_digest;  ///< of what stands before the data
};

struct Manifest {
  int format = 1;
  std::string tessera;   ///< versions that wrote it
  std::string libtorch;
  std::string mesh;      ///< for information: loading never depends on it
  std::vector<SavedTensor> tensors;
  std::map<std::string, std::string> aliases;  ///< names of tied tensors -> the name that has the data
  std::map<std::string, Value> values;
  std::vector<ShardFile> files;
  std::string digest;  ///< of the text it was read from

  [[nodiscard]] const SavedTensor* find(const std::string& name) const;
};

/// Reads and proves the manifest of a checkpoint: its digest, its fields, and that the chunks hold every element of every
/// tensor exactly once. Throws CheckpointCorrupt; FileError if there is no checkpoint
[[nodiscard]] Manifest read_manifest(const std::filesystem::path& folder);

/// True if `folder` has a manifest, be it whole or not.
[[nodiscard]] bool is_checkpoint(const std::filesystem::path& folder);

}  // namespace tessera::checkpoint
