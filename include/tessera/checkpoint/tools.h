// SPDX-License-Identifier: Apache-2.0
// Looking into checkpoints without the program that wrote them.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "tessera/checkpoint/errors.h"
#include "tessera/checkpoint/manifest.h"

namespace tessera::checkpoint {

/// XXH3-128 of a tensor's elements in row-major order: the same for the same values, however they lie in files.
/// Memory  the tensor. Throws CheckpointCorrupt
struct TensorDigest {
  std::string name;
  std::string digest;
};
[[nodiscard]] std::vector<TensorDigest> tensor_digests(const std::filesystem::path& folder, const Manifest& manifest);

/// Everything that is wrong with a checkpoint, a line each; empty: every byte of it is as it was written.
struct Verdict {
  std::int64_t num_files = 0;
  std::int64_t num_blocks = 0;
  std::int64_t num_bytes = 0;
  std::vector<std::string> problems;
};
[[nodiscard]] Verdict verify_checkpoint(const std::filesystem::path& folder);

/// A tensor or value that two checkpoints do not have alike.
struct Difference {
  std::string name;
  std::string what{};      ///< "only in A", "F32 [2] against F64 [2]", "3 of 10 elements", "\"120\" against \"130\""
  std::int64_t count = 0;  ///< elements that differ; 0 if they cannot be compared
  double largest = 0;      ///< absolute difference; NaN if one is not a number
};
/// Memory  two tensors. Throws CheckpointCorrupt
[[nodiscard]] std::vector<Difference> compare(const std::filesystem::path& a, const std::filesystem::path& b);

/// Writes the tensors whose names begin with `part` and a dot, without that, into one safetensors file; all tensors for an
/// empty part. Tied ones are written under each of their names. Returns how many.
/// Memory  the tensors. Throws ConfigError if the part is empty
std::int64_t export_safetensors(const std::filesystem::path& folder, const std::string& part,
                                const std::filesystem::path& to);

}  // namespace tessera::checkpoint
