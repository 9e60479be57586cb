// SPDX-License-Identifier: Apache-2.0
// The perceptron: linear layers with ReLU between them.
#include "tessera/base/error.h"
#include "tessera/train/models.h"
#include "train/models/common.h"

namespace tessera::train {
namespace {

// [B, inputs] -> [B, outputs], with ReLU and dropout unless it is the last layer.
struct MlpLayer : torch::nn::Module {
  MlpLayer(std::int64_t inputs, std::int64_t outputs, bool last, double dropout_p)
      : linear(register_module("linear", torch::nn::Linear(inputs, outputs))), is_last(last), dropout(dropout_p) {}

  torch::Tensor forward(const torch::Tensor& x) {
    const auto y = linear(x);
    return is_last ? y : torch::dropout(torch::relu(y), dropout, is_training());
  }

  torch::nn::Linear linear;
  bool is_last;
  double dropout;
};

}  // namespace

torch::nn::Sequential build_mlp(const MlpOptions& options) {
  check<ConfigError>(options.sizes.size() >= 2, "build_mlp: {} sizes given; name at least input and output width",
                     options.sizes.size());
  const auto num_layers = options.sizes.size() - 1;
  torch::nn::Sequential model;
  for (std::size_t i = 0; i < num_layers; ++i) {
    model->push_back(fmt::format("layer{}", i), std::make_shared<MlpLayer>(options.sizes[i], options.sizes[i + 1],
                                                                           i + 1 == num_layers, options.dropout));
  }
  return model;
}

ModelParts make_mlp_parts(const ModelConfig& config) {
  ModelParts parts;
  parts.module = build_mlp({.sizes = config.sizes, .dropout = config.dropout});
  parts.input = {InputKind::kVector, config.sizes.front(), config.sizes.back()};
  parts.initial_std = he_std;
  return parts;
}

}  // namespace tessera::train
