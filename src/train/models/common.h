// SPDX-License-Identifier: Apache-2.0
// What the built-in models share: how one of them becomes a row of the table of models.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <string>

#include "tessera/train/config.h"
#include "tessera/train/workload.h"

namespace tessera::train {

/// A model as its file describes it, before its parameters are filled.
struct ModelParts {
  torch::nn::Sequential module = nullptr;
  InputSpec input;
  Metric metric = Metric::kAccuracy;
  std::string unit = "samples";
  std::int64_t units_per_sample = 1;
  /// Parameters that a part computes with while another registers them.
  std::vector<HeldParameter> held;
  /// Standard deviation of the initial values of a parameter of two or more dimensions.
  double (*initial_std)(const std::string& name, const torch::Tensor& parameter, const ModelConfig& config) = nullptr;
};

/// sqrt(2 / fan_in): He et al. 2015, arXiv:1502.01852.
[[nodiscard]] double he_std(const std::string& name, const torch::Tensor& parameter, const ModelConfig& config);

[[nodiscard]] ModelParts make_mlp_parts(const ModelConfig& config);
[[nodiscard]] ModelParts make_cnn_parts(const ModelConfig& config);
[[nodiscard]] ModelParts make_resnet_parts(const ModelConfig& config);
[[nodiscard]] ModelParts make_gpt_parts(const ModelConfig& config);

}  // namespace tessera::train
