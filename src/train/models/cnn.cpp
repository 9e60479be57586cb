// SPDX-License-Identifier: Apache-2.0
// The residual convolutional network, with group norm so that no sample sees its neighbours in the batch.
#include "tessera/base/error.h"
#include "tessera/train/models.h"
#include "train/models/image.h"

namespace tessera::train {
namespace {

constexpr std::int64_t kGroups = 4;

torch::nn::GroupNorm group_norm(std::int64_t channels) {
  return torch::nn::GroupNorm(torch::nn::GroupNormOptions(kGroups, channels));
}

// [B, 1, h, h] -> [B, channels, h, h].
struct CnnStem : torch::nn::Module {
  explicit CnnStem(std::int64_t channels)
      : conv(register_module("conv", make_conv(1, channels, 3, 1))),
        norm(register_module("norm", group_norm(channels))) {}

  torch::Tensor forward(const torch::Tensor& x) { return torch::relu(norm(conv(x))); }

  torch::nn::Conv2d conv;
  torch::nn::GroupNorm norm;
};

// [B, inputs, h, h] -> [B, outputs, h / stride, h / stride].
struct CnnBlock : torch::nn::Module {
  CnnBlock(std::int64_t inputs, std::int64_t outputs, std::int64_t stride)
      : conv1(register_module("conv1", make_conv(inputs, outputs, 3, stride))),
        norm1(register_module("norm1", group_norm(outputs))),
        conv2(register_module("conv2", make_conv(outputs, outputs, 3, 1))),
        norm2(register_module("norm2", group_norm(outputs))) {
    if (stride != 1 || inputs != outputs) skip = register_module("skip", make_conv(inputs, outputs, 1, stride));
  }

  torch::Tensor forward(const torch::Tensor& x) {
    const auto y = torch::relu(norm1(conv1(x)));
    return torch::relu(norm2(conv2(y)) + (skip ? skip(x) : x));
  }

  torch::nn::Conv2d conv1;
  torch::nn::GroupNorm norm1;
  torch::nn::Conv2d conv2;
  torch::nn::GroupNorm norm2;
  torch::nn::Conv2d skip = nullptr;
};

}  // namespace

torch::nn::Sequential build_cnn(const CnnOptions& options) {
  check<ConfigError>(options.channels > 0 && options.channels % kGroups == 0,
                     "build_cnn: {} channels do not make {} equal groups; take a multiple of {}", options.channels,
                     kGroups, kGroups);
  check<ConfigError>(options.blocks >= 1, "build_cnn: {} blocks; take at least 1", options.blocks);
  torch::nn::Sequential model;
  model->push_back("stem", std::make_shared<CnnStem>(options.channels));
  const auto half = options.blocks / 2;
  auto width = options.channels;
  for (std::int64_t i = 0; i < options.blocks; ++i) {
    const auto outputs = i >= half ? 2 * options.channels : options.channels;
    model->push_back(fmt::format("block{}", i), std::make_shared<CnnBlock>(width, outputs, i == half ? 2 : 1));
    width = outputs;
  }
  model->push_back("head", std::make_shared<ImageHead>(width, options.classes));
  return model;
}

ModelParts make_cnn_parts(const ModelConfig& config) {
  const CnnOptions options{.channels = config.channels, .blocks = config.blocks};
  return make_digit_parts(build_cnn(options), options.classes);
}

}  // namespace tessera::train
