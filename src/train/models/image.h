// SPDX-License-Identifier: Apache-2.0
// What the convolutional models share: the convolution without bias, the head, and how digits go in.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <utility>

#include "train/models/common.h"

namespace tessera::train {

/// The normalisation behind it has the bias. Shapes  [B, inputs, h, h] -> [B, outputs, h / stride, h / stride]
inline torch::nn::Conv2d make_conv(std::int64_t inputs, std::int64_t outputs, std::int64_t kernel, std::int64_t stride) {
  return torch::nn::Conv2d(
      torch::nn::Conv2dOptions(inputs, outputs, kernel).stride(stride).padding(kernel / 2).bias(false));
}

/// Global average pool, then linear. Shapes  [B, channels, h, h] -> [B, classes]
struct ImageHead : torch::nn::Module {
  ImageHead(std::int64_t channels, std::int64_t classes)
      : out(register_module("out", torch::nn::Linear(channels, classes))) {}

  torch::Tensor forward(const torch::Tensor& x) { return out(x.mean({2, 3})); }

  torch::nn::Linear out;
};

inline ModelParts make_digit_parts(torch::nn::Sequential module, std::int64_t classes) {
  constexpr std::int64_t kDigitSide = 8;
  ModelParts parts;
  parts.module = std::move(module);
  parts.input = {InputKind::kImage, kDigitSide, classes};
  parts.initial_std = he_std;
  return parts;
}

}  // namespace tessera::train
