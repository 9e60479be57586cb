// SPDX-License-Identifier: Apache-2.0
// Modules with parameters, and the norms.
#include "module/every_module.h"

namespace tessera::test {

namespace nn = torch::nn;
using at::Tensor;

std::vector<ModuleCase> layer_cases() {
  return {
      unary<nn::Linear>("Linear", {4, 6}, nn::LinearOptions(6, 8)),
      unary<nn::Linear>("Linear_planes", {4, 3, 6}, nn::LinearOptions(6, 8).bias(false)),
      binary<nn::Bilinear>("Bilinear", {{4, 6}}, {{4, 3}}, nn::BilinearOptions(6, 3, 4)),
      unary<nn::Conv1d>("Conv1d", {4, 4, 6}, nn::Conv1dOptions(4, 6, 3)),
      unary<nn::Conv2d>("Conv2d", {4, 4, 6, 6}, nn::Conv2dOptions(4, 6, 3)),
      unary<nn::Conv2d>("Conv2d_groups", {4, 4, 6, 6}, nn::Conv2dOptions(4, 8, 3).groups(2).stride(2).padding(1)),
      unary<nn::Conv2d>("Conv2d_circular", {4, 4, 6, 6},
                        nn::Conv2dOptions(4, 6, 3).padding(1).padding_mode(torch::kCircular)),
      unary<nn::Conv3d>("Conv3d", {4, 2, 4, 4, 4}, nn::Conv3dOptions(2, 4, 2)),
      unary<nn::ConvTranspose1d>("ConvTranspose1d", {4, 4, 6}, nn::ConvTranspose1dOptions(4, 6, 3)),
      unary<nn::ConvTranspose2d>("ConvTranspose2d", {4, 4, 5, 6}, nn::ConvTranspose2dOptions(4, 6, 3)),
      unary<nn::ConvTranspose3d>("ConvTranspose3d", {4, 2, 3, 3, 4}, nn::ConvTranspose3dOptions(2, 4, 2)),
      unary<nn::BatchNorm1d>("BatchNorm1d", {4, 6}, nn::BatchNorm1dOptions(6)),
      unary<nn::BatchNorm1d>("BatchNorm1d_planes", {4, 4, 6}, nn::BatchNorm1dOptions(4)),
      unary<nn::BatchNorm1d>("BatchNorm1d_cumulative", {4, 6}, nn::BatchNorm1dOptions(6).momentum(c10::nullopt)),
      unary<nn::BatchNorm2d>("BatchNorm2d", {4, 4, 3, 6}, nn::BatchNorm2dOptions(4)),
      unary<nn::BatchNorm2d>("BatchNorm2d_plain", {4, 4, 3, 6},
                             nn::BatchNorm2dOptions(4).affine(false).track_running_stats(false)),
      unary<nn::BatchNorm3d>("BatchNorm3d", {4, 4, 2, 3, 6}, nn::BatchNorm3dOptions(4)),
      unary<nn::InstanceNorm1d>("InstanceNorm1d", {4, 4, 6}, nn::InstanceNorm1dOptions(4)),
      unary<nn::InstanceNorm2d>("InstanceNorm2d", {4, 4, 3, 6}, nn::InstanceNorm2dOptions(4)),
      unary<nn::InstanceNorm2d>("InstanceNorm2d_tracked", {4, 4, 3, 6},
                                nn::InstanceNorm2dOptions(4).affine(true).track_running_stats(true)),
      unary<nn::InstanceNorm3d>("InstanceNorm3d", {4, 4, 2, 3, 6}, nn::InstanceNorm3dOptions(4).affine(true)),
      unary<nn::LayerNorm>("LayerNorm", {4, 3, 6}, nn::LayerNormOptions({6})),
      unary<nn::LayerNorm>("LayerNorm_planes", {4, 4, 6}, nn::LayerNormOptions({4, 6})),
      unary<nn::GroupNorm>("GroupNorm", {4, 4, 3, 6}, nn::GroupNormOptions(2, 4)),
      unary<nn::LocalResponseNorm>("LocalResponseNorm", {4, 6, 3, 4}, nn::LocalResponseNormOptions(2)),
      unary<nn::CrossMapLRN2d>("CrossMapLRN2d", {4, 6, 3, 4}, nn::CrossMapLRN2dOptions(3)),
      module_case(
          "Embedding", {{{4, 5}, 8}}, [] { return nn::Embedding(8, 6); },
          [](nn::Embedding& module, const Tensors& x) { return module(x[0]); }),
      module_case(
          "Embedding_padded", {{{4, 5}, 8}}, [] { return nn::Embedding(nn::EmbeddingOptions(8, 6).padding_idx(3)); },
          [](nn::Embedding& module, const Tensors& x) { return module(x[0]); }),
      module_case(
          "EmbeddingBag", {{{4, 5}, 8}}, [] { return nn::EmbeddingBag(8, 6); },
          [](nn::EmbeddingBag& module, const Tensors& x) { return module(x[0]); }),
      module_case(
          "EmbeddingBag_sum", {{{4, 5}, 8}},
          [] { return nn::EmbeddingBag(nn::EmbeddingBagOptions(8, 6).mode(torch::kSum)); },
          [](nn::EmbeddingBag& module, const Tensors& x) { return module(x[0]); }),
      module_case(
          "EmbeddingBag_max", {{{4, 5}, 8}},
          [] { return nn::EmbeddingBag(nn::EmbeddingBagOptions(8, 6).mode(torch::kMax)); },
          [](nn::EmbeddingBag& module, const Tensors& x) { return module(x[0]); }),
      unary<nn::PReLU>("PReLU", {4, 3, 6}),
      unary<nn::PReLU>("PReLU_channels", {4, 4, 6}, nn::PReLUOptions().num_parameters(4)),
  };
}

}  // namespace tessera::test
