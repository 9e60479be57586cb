// SPDX-License-Identifier: Apache-2.0
// The residual network of small pictures, with batch norm: statistics are those of the whole batch on any mesh.
// Source: He et al. 2016, arXiv:1512.03385, section 4.2.
#include "tessera/base/error.h"
#include "tessera/train/models.h"
#include "train/models/image.h"

namespace tessera::train {
namespace {

constexpr std::int64_t kStages = 3;

// Convolution and batch norm, the pair that the whole network is made of. [B, inputs, h, h] -> [B, outputs, h / s, h / s].
struct NormedConv : torch::nn::Module {
  NormedConv(std::int64_t inputs, std::int64_t outputs, std::int64_t kernel, std::int64_t stride)
      : conv(register_module("conv", make_conv(inputs, outputs, kernel, stride))),
        norm(register_module("norm", torch::nn::BatchNorm2d(outputs))) {}

  torch::Tensor forward(const torch::Tensor& x) { return norm(conv(x)); }

  torch::nn::Conv2d conv;
  torch::nn::BatchNorm2d norm;
};

struct ResnetStem : torch::nn::Module {
  explicit ResnetStem(std::int64_t channels)
      : layer(register_module("layer", std::make_shared<NormedConv>(1, channels, 3, 1))) {}

  torch::Tensor forward(const torch::Tensor& x) { return torch::relu(layer->forward(x)); }

  std::shared_ptr<NormedConv> layer;
};

struct ResnetBlock : torch::nn::Module {
  ResnetBlock(std::int64_t inputs, std::int64_t outputs, std::int64_t stride)
      : layer1(register_module("layer1", std::make_shared<NormedConv>(inputs, outputs, 3, stride))),
        layer2(register_module("layer2", std::make_shared<NormedConv>(outputs, outputs, 3, 1))) {
    if (stride != 1 || inputs != outputs) {
      skip = register_module("skip", std::make_shared<NormedConv>(inputs, outputs, 1, stride));
    }
  }

  torch::Tensor forward(const torch::Tensor& x) {
    const auto y = layer2->forward(torch::relu(layer1->forward(x)));
    return torch::relu(y + (skip ? skip->forward(x) : x));
  }

  std::shared_ptr<NormedConv> layer1;
  std::shared_ptr<NormedConv> layer2;
  std::shared_ptr<NormedConv> skip;
};

}  // namespace

torch::nn::Sequential build_resnet(const ResnetOptions& options) {
  check<ConfigError>(options.channels >= 1, "build_resnet: {} channels; take at least 1", options.channels);
  check<ConfigError>(options.blocks >= kStages, "build_resnet: {} blocks do not make {} stages; take at least {}",
                     options.blocks, kStages, kStages);
  torch::nn::Sequential model;
  model->push_back("stem", std::make_shared<ResnetStem>(options.channels));
  auto width = options.channels;
  for (std::int64_t i = 0; i < options.blocks; ++i) {
    const auto outputs = options.channels << (i * kStages / options.blocks);
    model->push_back(fmt::format("block{}", i), std::make_shared<ResnetBlock>(width, outputs, outputs == width ? 1 : 2));
    width = outputs;
  }
  model->push_back("head", std::make_shared<ImageHead>(width, options.classes));
  return model;
}

ModelParts make_resnet_parts(const ModelConfig& config) {
  const ResnetOptions options{.channels = config.channels, .blocks = config.blocks};
  return make_digit_parts(build_resnet(options), options.classes);
}

}  // namespace tessera::train
