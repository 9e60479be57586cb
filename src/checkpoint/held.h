// SPDX-License-Identifier: Apache-2.0
// Which elements of a tensor this rank holds, and which rank of several that hold the same writes them.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace tessera::checkpoint {

/// A box of the whole tensor, and where it begins in this rank's part.
struct HeldBox {
  std::vector<std::int64_t> offset;
  std::vector<std::int64_t> local_offset;
  std::vector<std::int64_t> length;
};

/// What this rank holds: all of a plain tensor; nothing if it is on other pipeline stages, or if the shard is empty.
[[nodiscard]] std::vector<HeldBox> held_boxes(const at::Tensor& tensor);

/// Ranks that hold the same elements, and which of them this one is.
struct Replica {
  int index = 0;  ///< -1: it holds none
  int count = 1;
};

/// `world_rank` and `world_size` count for plain tensors, which every rank holds.
[[nodiscard]] Replica replica_of(const at::Tensor& tensor, int world_rank, int world_size);

/// The part `offset`, `length` of `memory`, sharing it.
[[nodiscard]] at::Tensor part(at::Tensor memory, const std::vector<std::int64_t>& offset,
                              const std::vector<std::int64_t>& length);

}  // namespace tessera::checkpoint
