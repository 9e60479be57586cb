// SPDX-License-Identifier: Apache-2.0
// Modules that rearrange, pool, pad or resample lines, planes and volumes.
#include "module/every_module.h"

namespace tessera::test {

namespace nn = torch::nn;
using at::Tensor;

namespace {

/// Where the windows begin. The modules keep it as a buffer, so each is given its own. Without it they would draw with
/// torch::rand, which knows of no mesh.
Tensor samples(std::int64_t dims) {
  return (torch::arange(4 * 2 * dims, torch::kDouble) * 0.37).remainder(1).view({4, 2, dims});
}

ModuleCase fractional_pool2d() {
  return module_case(
      "FractionalMaxPool2d", {{{4, 2, 6, 6}}},
      [] {
        return nn::FractionalMaxPool2d(nn::FractionalMaxPool2dOptions(2).output_size(3)._random_samples(samples(2)));
      },
      [](nn::FractionalMaxPool2d& module, const Tensors& x) { return module(x[0]); });
}
ModuleCase fractional_pool3d() {
  return module_case(
      "FractionalMaxPool3d", {{{4, 2, 4, 4, 6}}},
      [] {
        return nn::FractionalMaxPool3d(nn::FractionalMaxPool3dOptions(2).output_size(2)._random_samples(samples(3)));
      },
      [](nn::FractionalMaxPool3d& module, const Tensors& x) { return module(x[0]); });
}

ModuleCase unpool1d() {
  return module_case(
      "MaxUnpool1d", {{{4, 2, 6}}}, [] { return nn::MaxUnpool1d(2); },
      [](nn::MaxUnpool1d& module, const Tensors& x) {
        const auto [pooled, index] = torch::max_pool1d_with_indices(x[0], 2);
        return module(pooled, index);
      });
}
ModuleCase unpool2d() {
  return module_case(
      "MaxUnpool2d", {{{4, 2, 6, 6}}}, [] { return nn::MaxUnpool2d(2); },
      [](nn::MaxUnpool2d& module, const Tensors& x) {
        const auto [pooled, index] = torch::max_pool2d_with_indices(x[0], 2);
        return module(pooled, index);
      });
}
ModuleCase unpool3d() {
  return module_case(
      "MaxUnpool3d", {{{4, 2, 4, 4, 6}}}, [] { return nn::MaxUnpool3d(2); },
      [](nn::MaxUnpool3d& module, const Tensors& x) {
        const auto [pooled, index] = torch::max_pool3d_with_indices(x[0], 2);
        return module(pooled, index);
      });
}

template <class Mode>
ModuleCase upsample(const std::string& name, const std::vector<std::int64_t>& sizes, Mode mode) {
  const std::vector<double> scale(sizes.size() - 2, 2.0);
  return unary<nn::Upsample>(name, sizes, nn::UpsampleOptions().scale_factor(scale).mode(mode));
}

}  // namespace

std::vector<ModuleCase> plane_cases() {
  return {
      unary<nn::Flatten>("Flatten", {4, 2, 6}),
      unary<nn::Unflatten>("Unflatten", {4, 6}, nn::UnflattenOptions(1, {2, 3})),
      unary<nn::Fold>("Fold", {4, 8, 9}, nn::FoldOptions({4, 4}, 2)),
      unary<nn::Unfold>("Unfold", {4, 2, 4, 6}, nn::UnfoldOptions(2)),
      unary<nn::PixelShuffle>("PixelShuffle", {4, 8, 3, 4}, nn::PixelShuffleOptions(2)),
      unary<nn::PixelUnshuffle>("PixelUnshuffle", {4, 2, 4, 6}, nn::PixelUnshuffleOptions(2)),
      upsample("Upsample", {4, 2, 3, 4}, torch::kNearest),
      upsample("Upsample_linear", {4, 2, 6}, torch::kLinear),
      upsample("Upsample_bilinear", {4, 2, 3, 4}, torch::kBilinear),
      upsample("Upsample_bicubic", {4, 2, 3, 4}, torch::kBicubic),
      upsample("Upsample_trilinear", {4, 2, 2, 3, 4}, torch::kTrilinear),
      unary<nn::AvgPool1d>("AvgPool1d", {4, 2, 6}, nn::AvgPool1dOptions(2)),
      unary<nn::AvgPool2d>("AvgPool2d", {4, 2, 4, 6}, nn::AvgPool2dOptions(2)),
      unary<nn::AvgPool3d>("AvgPool3d", {4, 2, 4, 4, 6}, nn::AvgPool3dOptions(2)),
      unary<nn::MaxPool1d>("MaxPool1d", {4, 2, 6}, nn::MaxPool1dOptions(2)),
      unary<nn::MaxPool2d>("MaxPool2d", {4, 2, 4, 6}, nn::MaxPool2dOptions(2)),
      unary<nn::MaxPool3d>("MaxPool3d", {4, 2, 4, 4, 6}, nn::MaxPool3dOptions(2)),
      unary<nn::AdaptiveAvgPool1d>("AdaptiveAvgPool1d", {4, 2, 6}, nn::AdaptiveAvgPool1dOptions(4)),
      unary<nn::AdaptiveAvgPool2d>("AdaptiveAvgPool2d", {4, 2, 4, 6}, nn::AdaptiveAvgPool2dOptions({3, 4})),
      unary<nn::AdaptiveAvgPool3d>("AdaptiveAvgPool3d", {4, 2, 4, 4, 6}, nn::AdaptiveAvgPool3dOptions({2, 3, 4})),
      unary<nn::AdaptiveMaxPool1d>("AdaptiveMaxPool1d", {4, 2, 6}, nn::AdaptiveMaxPool1dOptions(4)),
      unary<nn::AdaptiveMaxPool2d>("AdaptiveMaxPool2d", {4, 2, 4, 6}, nn::AdaptiveMaxPool2dOptions({3, 4})),
      unary<nn::AdaptiveMaxPool3d>("AdaptiveMaxPool3d", {4, 2, 4, 4, 6}, nn::AdaptiveMaxPool3dOptions({2, 3, 4})),
      fractional_pool2d(),
      fractional_pool3d(),
      unary<nn::LPPool1d>("LPPool1d", {4, 2, 6}, nn::LPPool1dOptions(2, 2)),
      unary<nn::LPPool2d>("LPPool2d", {4, 2, 4, 6}, nn::LPPool2dOptions(2, 2)),
      unary<nn::LPPool3d>("LPPool3d", {4, 2, 4, 4, 6}, nn::LPPool3dOptions(2, 2)),
      unpool1d(),
      unpool2d(),
      unpool3d(),
      unary<nn::ConstantPad1d>("ConstantPad1d", {4, 2, 6}, nn::ConstantPad1dOptions(2, 0.5)),
      unary<nn::ConstantPad2d>("ConstantPad2d", {4, 2, 4, 6}, nn::ConstantPad2dOptions({1, 2, 0, 1}, 0.5)),
      unary<nn::ConstantPad3d>("ConstantPad3d", {4, 2, 2, 4, 6}, nn::ConstantPad3dOptions(1, 0.5)),
      unary<nn::ZeroPad1d>("ZeroPad1d", {4, 2, 6}, nn::ZeroPad1dOptions(2)),
      unary<nn::ZeroPad2d>("ZeroPad2d", {4, 2, 4, 6}, nn::ZeroPad2dOptions({1, 2, 0, 1})),
      unary<nn::ZeroPad3d>("ZeroPad3d", {4, 2, 2, 4, 6}, nn::ZeroPad3dOptions(1)),
      unary<nn::ReflectionPad1d>("ReflectionPad1d", {4, 2, 6}, nn::ReflectionPad1dOptions(2)),
      unary<nn::ReflectionPad2d>("ReflectionPad2d", {4, 2, 4, 6}, nn::ReflectionPad2dOptions({1, 2, 0, 1})),
      unary<nn::ReflectionPad3d>("ReflectionPad3d", {4, 2, 3, 4, 6}, nn::ReflectionPad3dOptions(1)),
      unary<nn::ReplicationPad1d>("ReplicationPad1d", {4, 2, 6}, nn::ReplicationPad1dOptions(2)),
      unary<nn::ReplicationPad2d>("ReplicationPad2d", {4, 2, 4, 6}, nn::ReplicationPad2dOptions({1, 2, 0, 1})),
      unary<nn::ReplicationPad3d>("ReplicationPad3d", {4, 2, 3, 4, 6}, nn::ReplicationPad3dOptions(1)),
  };
}

}  // namespace tessera::test
