// SPDX-License-Identifier: Apache-2.0
// Weights files: safetensors, read strictly and written whole or not at all.
#pragma once

#include <c10/core/ScalarType.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tessera::checkpoint {

struct NamedTensor {
  std::string name;
  at::Tensor tensor;
};

/// One entry of a file's header. `begin` and `end` count bytes from the end of the header.
struct TensorEntry {
  std::string name;
  c10::ScalarType dtype = c10::ScalarType::Float;
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

struct SafetensorsHeader {
  /// In the order of their data.
  std::vector<TensorEntry> tensors;
  std::map<std::string, std::string> metadata;
};

/// Longest header that is read: a file that claims more is refused before anything is allocated for it.
inline constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;

/// Parses the JSON of a header and proves it against the number of data bytes that follow it: known dtypes, no
/// duplicate names or fields, shape times element size equal to the range, ranges without hole or overlap that end
/// where the data end. Throws  FileError naming `file`, the tensor and the numbers that disagree
[[nodiscard]] SafetensorsHeader parse_safetensors_header(std::string_view json, std::uint64_t data_bytes,
                                                         const std::string& file);

/// Reads every tensor of a file onto the CPU, in the order of their data.
/// Throws  FileError as above, and for a file that is missing, not a regular file or truncated
[[nodiscard]] std::vector<NamedTensor> read_safetensors(const std::filesystem::path& path);

/// Writes the tensors (F64 F32 F16 BF16 I64 I32 U8 BOOL; any device and strides) under a temporary name in the same
/// folder, flushes them to the disk and renames: the file is there whole or not at all.
/// Throws  FileError for a name given twice, a dtype without a spelling, or a failing system call
void write_safetensors(const std::vector<NamedTensor>& tensors, const std::filesystem::path& path,
                       const std::map<std::string, std::string>& metadata = {});

/// The module's parameters under their dotted names.
[[nodiscard]] std::vector<NamedTensor> named_parameters(const torch::nn::Module& module);

/// Reads the tensors of a file into the parameters of the same names. All or nothing: no parameter is written unless
/// all fit. Of parameters on a mesh each rank reads its shards and nothing else, so that it never holds one whole.
/// `stored_dtype` is the one that the file must have, and that values are converted from; none: that of the parameters.
/// Order   before the module takes its first step; not collective
/// Throws  FileError listing the first ten missing or extra names and differing shapes or dtypes, and their count
void load_weights(torch::nn::Module& module, const std::filesystem::path& path,
                  std::optional<at::ScalarType> stored_dtype = {});

/// Writes named tensors, each a full (not sharded) value.
void save_weights(const std::vector<NamedTensor>& tensors, const std::filesystem::path& path);

}  // namespace tessera::checkpoint
