// SPDX-License-Identifier: Apache-2.0
// Files and formulas turned into tables of samples, before anything is split or shuffled.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <filesystem>
#include <string>

#include "tessera/train/workload.h"

namespace tessera::train {

/// Inputs and targets of all samples.
struct RawSamples {
  torch::Tensor input;
  torch::Tensor target;
};

/// Rows of numbers with an integer label in the last column. Shapes  input float32 [N, columns - 1], target int64 [N]
/// Throws  FileError naming file, line and value
[[nodiscard]] RawSamples read_csv(const std::filesystem::path& path, std::int64_t classes);

/// The digits as images' rows of 64 numbers from 0 to 1. `configured` empty: the standard places.
[[nodiscard]] RawSamples read_digits(const std::string& configured, std::int64_t classes);

/// A text as uint8 tokens [num_bytes]: one file, or the regular files of a folder sorted by name, one after the other.
/// Throws  FileError if it is missing, empty or binary
[[nodiscard]] torch::Tensor read_text_tokens(const std::filesystem::path& path);

/// Windows of `width` tokens that do not overlap, and the same one token later.
/// Throws  FileError naming `source` if there are not even width + 1 tokens, or a token outside 0 .. vocab - 1
[[nodiscard]] RawSamples cut_windows(const torch::Tensor& tokens, std::int64_t width, std::int64_t vocab,
                                     const std::string& source);

/// 4096 normal vectors; the label is the index of the largest of the first `classes` entries.
[[nodiscard]] RawSamples make_synthetic_vectors(std::int64_t width, std::int64_t classes);

/// 65536 tokens: t' = (5 t + 1 + r) mod vocab with r of 0 .. 3 from a linear congruential generator.
[[nodiscard]] torch::Tensor make_synthetic_tokens(std::int64_t vocab);

}  // namespace tessera::train
