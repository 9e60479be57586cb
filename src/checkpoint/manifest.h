// SPDX-License-Identifier: Apache-2.0
// The manifest as text, and the names and digests of a checkpoint's files.
#pragma once

#include "checkpoint/json.h"
#include "tessera/checkpoint/manifest.h"

namespace tessera::checkpoint {

inline constexpr const char* kManifestName = "manifest.json";
inline constexpr const char* kDigestName = "manifest.json.xxh3";
inline constexpr int kFormat = 1;

/// XXH3-128 as 32 hexadecimal digits.
[[nodiscard]] std::string digest_of(const void* bytes, std::size_t num_bytes);

[[nodiscard]] Json to_json(const Chunk& chunk);
[[nodiscard]] Json to_json(const SavedTensor& tensor);
[[nodiscard]] Chunk chunk_of(const JsonPlace& place);
[[nodiscard]] std::string format_manifest(const Manifest& manifest);
/// Throws CheckpointCorrupt naming `file`, the place and the problem.
[[nodiscard]] Manifest parse_manifest(std::string_view text, const std::string& file);

/// Refuses chunks that leave elements out, overlap or reach beyond the tensor.
void check_coverage(const SavedTensor& tensor, const std::string& file);

/// "shard-00002-of-00008.safetensors".
[[nodiscard]] std::string shard_name(int rank, int num_ranks);
/// True for the names that saving gives.
[[nodiscard]] bool is_shard_name(std::string_view name);

/// Product of `lengths`.
[[nodiscard]] std::int64_t volume(const std::vector<std::int64_t>& lengths) noexcept;

}  // namespace tessera::checkpoint
