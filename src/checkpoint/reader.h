// SPDX-License-Identifier: Apache-2.0
// A checkpoint that is being read, block by block, each proven by its digest.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "checkpoint/files.h"
#include "checkpoint/weights_file.h"
#include "tessera/checkpoint/manifest.h"

namespace tessera::checkpoint {

/// Rows of a chunk that have one digest.
struct Block {
  const SavedTensor* tensor;
  const Chunk* chunk;
  std::int64_t index;
  std::vector<std::int64_t> offset;  ///< in the whole tensor
  std::vector<std::int64_t> length;
};

/// All blocks of a tensor, in the order of the manifest.
[[nodiscard]] std::vector<Block> blocks_of(const SavedTensor& tensor);

class Reader {
 public:
  /// Opens the folder. Files are opened when they are needed.
  Reader(const std::filesystem::path& folder, const Manifest& manifest);

  /// The elements of a block, on the CPU; valid until the next call.
  /// Throws CheckpointCorrupt naming file, tensor and block.
  [[nodiscard]] const at::Tensor& read(const Block& block);
  /// Size and header of every file, whether something needs it or not.
  void open_all();

 private:
  struct OpenFile {
    WeightsFile file;
    std::map<std::string, const TensorEntry*> entries;
  };
  const OpenFile& file(const std::string& name);
  [[nodiscard]] OpenFile open(const ShardFile& expected) const;

  std::string folder_name_;
  Descriptor folder_;
  const Manifest& manifest_;
  std::map<std::string, OpenFile> files_;
  at::Tensor block_;
};

}  // namespace tessera::checkpoint
