// SPDX-License-Identifier: Apache-2.0
// What each part of a model costs, measured: what pipeline stages are balanced by.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tessera/mesh/mesh.h"
#include "tessera/train/dataset.h"
#include "tessera/train/workload.h"

namespace tessera::train {

/// One child of a model's torch::nn::Sequential, on one device, for one micro-batch.
struct PartCost {
  std::string path;
  double seconds = 0;                 ///< forward and backward: the median of several
  std::int64_t activation_bytes = 0;  ///< that forward leaves for backward
  std::int64_t parameter_bytes = 0;
  friend bool operator==(const PartCost&, const PartCost&) = default;
};

/// Runs the model part by part on `batch`: forward, and backward from a gradient of ones. Gradients and the random
/// numbers of LibTorch are left as they were. Assumes   plain tensors on the device that will train Cost      five
/// forwards and four backwards, and the memory of one part at a time
[[nodiscard]] std::vector<PartCost> measure_parts(const Workload& workload, const Batch& batch);

/// Rank 0's costs on every rank, so that all cut the model alike. Collective.
void agree_on_costs(std::vector<PartCost>& costs, const Mesh& mesh);

/// The weight of a part under `balance`:
///   time     seconds
///   memory   bytes while training: parameters and gradients, what `optimizer` keeps for each parameter (adam, adamw
///   two
///            values, sgd one if it has momentum), and the activations of one micro-batch
[[nodiscard]] double weight_of(const PartCost& cost, const std::string& balance, const OptimizerConfig& optimizer);

}  // namespace tessera::train
