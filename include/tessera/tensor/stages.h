// SPDX-License-Identifier: Apache-2.0
// Pipeline stages: which ranks along axis `pp` compute what, and what that costs.
//
// A stage is a placement. A parameter that lies on Stage(k) has memory on the ranks of stage k only. Every rank runs
// the same program; an operator runs where its operands lie, and elsewhere it only makes a tensor with sizes and no
// data:
//
//   a parameter among the operands    its stage
//   else                              where all operands lie; if there is no such place: in forward the latest stage
//                                     among them, in backward the earliest
//   written in place                  where the written tensor lies
//   a gradient                        where the operator ran whose gradient it is
//
// What an operand lacks on that stage is sent there, once: the tensor lies on both stages from then on. Numbers that
// leave the mesh (item()) are sent to everybody; torch::equal of such a tensor and itself is true without a look at it
// (LibTorch says false if there is a NaN). Sizes of results are sent once per kind of call; after that, ranks
// without the data know them.
#pragma once

#include <cstdint>
#include <vector>

#include "tessera/mesh/mesh.h"

namespace tessera {

/// Says which coordinate along axis `pp` computes which stage: rank_of_stage[k] for stage k, at most kMaxStages of
/// them. Default: stage k on coordinate k.
/// Order   the same on every rank, before any tensor lies on a stage
/// Throws  ConfigError if the mesh has no axis pp, if a coordinate is out of range, or if the mesh has another map
void set_stages(const Mesh& mesh, const std::vector<int>& rank_of_stage);

/// The map of set_stages; empty without an axis pp.
[[nodiscard]] const std::vector<int>& rank_of_stage(const Mesh& mesh);

/// What stages cost on this rank since the mesh was made.
struct StageTraffic {
  std::int64_t sent = 0;  ///< tensors sent to another stage
  std::int64_t sent_bytes = 0;
  std::int64_t shapes_sent = 0;   ///< messages about the sizes of results; none once every kind of call is known
  std::int64_t scalars_sent = 0;  ///< numbers that left the mesh, and sizes that depend on values
  friend bool operator==(const StageTraffic&, const StageTraffic&) = default;
};
[[nodiscard]] StageTraffic stage_traffic(const Mesh& mesh);

/// True if this rank has data of the tensor; always, if it lies on no stage. Without data, tessera::local() is a meta
/// tensor of the shard's sizes.
[[nodiscard]] bool is_here(const at::Tensor& tensor);

}  // namespace tessera
