// SPDX-License-Identifier: Apache-2.0
// Vision by convolution.
#include "battery/battery.h"

namespace tessera::battery {
namespace {

namespace nn = torch::nn;

nn::Conv2d conv(std::int64_t in, std::int64_t out, std::int64_t kernel, std::int64_t stride = 1, std::int64_t groups = 1) {
  return nn::Conv2d(nn::Conv2dOptions(in, out, kernel).stride(stride).padding(kernel / 2).groups(groups).bias(false));
}

struct BottleneckImpl : nn::Module {
  BottleneckImpl(std::int64_t in, std::int64_t width, std::int64_t out, std::int64_t stride)
      : conv1(register_module("conv1", conv(in, width, 1))), bn1(register_module("bn1", nn::BatchNorm2d(width))),
        conv2(register_module("conv2", conv(width, width, 3, stride))), bn2(register_module("bn2", nn::BatchNorm2d(width))),
        conv3(register_module("conv3", conv(width, out, 1))), bn3(register_module("bn3", nn::BatchNorm2d(out))) {
    if (in != out) downsample = register_module("downsample", nn::Sequential(conv(in, out, 1, stride), nn::BatchNorm2d(out)));
  }
  Tensor forward(const Tensor& x) {
    Tensor y = bn1(conv1(x)).relu_();
    y = bn2(conv2(y)).relu_();
    y = bn3(conv3(y));
    y += downsample.is_empty() ? x : downsample->forward(x);
    return y.relu_();
  }
  nn::Conv2d conv1;
  nn::BatchNorm2d bn1;
  nn::Conv2d conv2;
  nn::BatchNorm2d bn2;
  nn::Conv2d conv3;
  nn::BatchNorm2d bn3;
  nn::Sequential downsample{nullptr};
};
TORCH_MODULE(Bottleneck);

struct ResNet : nn::Module {
  ResNet()
      : stem(register_module("stem", nn::Sequential(nn::Conv2d(nn::Conv2dOptions(3, 8, 3).padding(1).bias(false)), nn::BatchNorm2d(8), nn::ReLU(true),
                                                    nn::MaxPool2d(nn::MaxPool2dOptions(3).stride(2).padding(1))))),
        layer1(register_module("layer1", nn::Sequential(Bottleneck(8, 4, 16, 1), Bottleneck(16, 4, 16, 1)))),
        layer2(register_module("layer2", nn::Sequential(Bottleneck(16, 6, 20, 2)))), fc(register_module("fc", nn::Linear(20, 5))) {}
  Tensor forward(const Tensor& x) {
    return fc(torch::adaptive_avg_pool2d(layer2->forward(layer1->forward(stem->forward(x))), {1, 1}).flatten(1));
  }
  nn::Sequential stem, layer1, layer2;
  nn::Linear fc;
};

/// The same on images whose channels lie last in memory, in modules that lie so too.
struct ChannelsLastResNet : ResNet {
  Tensor forward(const Tensor& x) { return ResNet::forward(x.contiguous(at::MemoryFormat::ChannelsLast)); }
};

struct DenseNet : nn::Module {
  DenseNet() : head(register_module("head", nn::Linear(16, 5))) {
    register_module("layers", layers);
    for (int i = 0; i < 3; ++i) {
      const std::int64_t in = 4 + 4 * i;
      layers->push_back(nn::Sequential(nn::BatchNorm2d(in), nn::ReLU(), conv(in, 8, 1), nn::BatchNorm2d(8), nn::ReLU(), conv(8, 4, 3)));
    }
    first = register_module("first", conv(3, 4, 3));
    transition = register_module("transition", nn::Sequential(nn::BatchNorm2d(16), nn::ReLU(), conv(16, 16, 1), nn::AvgPool2d(2)));
  }
  Tensor forward(const Tensor& x) {
    Tensors features{first(x)};
    for (const auto& layer : *layers) features.push_back(layer->as<nn::Sequential>()->forward(torch::cat(features, 1)));
    return head(transition->forward(torch::cat(features, 1)).mean({2, 3}));
  }
  nn::ModuleList layers;
  nn::Linear head;
  nn::Conv2d first{nullptr};
  nn::Sequential transition{nullptr};
};

/// Inverted residuals with depthwise convolutions; squeeze and excitation in the EfficientNet.
template <bool kSqueezes>
struct InvertedNet : nn::Module {
  InvertedNet()
      : stem(register_module("stem", nn::Sequential(conv(3, 6, 3, 2), nn::BatchNorm2d(6), nn::ReLU6()))),
        expand(register_module("expand", nn::Sequential(conv(6, 18, 1), nn::BatchNorm2d(18), nn::SiLU()))),
        depthwise(register_module("depthwise", nn::Sequential(conv(18, 18, 3, 1, 18), nn::BatchNorm2d(18), nn::SiLU()))),
        squeeze(register_module("squeeze", nn::Conv2d(18, 4, 1))), excite(register_module("excite", nn::Conv2d(4, 18, 1))),
        project(register_module("project", nn::Sequential(conv(18, 6, 1), nn::BatchNorm2d(6)))), head(register_module("head", nn::Linear(6, 5))) {}
  Tensor forward(const Tensor& images) {
    const Tensor x = stem->forward(images);
    Tensor y = depthwise->forward(expand->forward(x));
    if (kSqueezes) y = y * torch::sigmoid(excite(torch::silu(squeeze(torch::adaptive_avg_pool2d(y, {1, 1})))));
    return head((x + project->forward(y)).mean({2, 3}));
  }
  nn::Sequential stem, expand, depthwise;
  nn::Conv2d squeeze, excite;
  nn::Sequential project;
  nn::Linear head;
};

/// Halves of the channels, one through a branch; then channels of groups change places.
struct ShuffleNet : nn::Module {
  ShuffleNet()
      : stem(register_module("stem", conv(3, 8, 3))),
        branch(register_module("branch", nn::Sequential(conv(4, 4, 1), nn::BatchNorm2d(4), nn::ReLU(), conv(4, 4, 3, 1, 4), nn::BatchNorm2d(4), conv(4, 4, 1), nn::ReLU()))),
        grouped(register_module("grouped", conv(8, 8, 1, 1, 2))), head(register_module("head", nn::Linear(8, 5))) {}
  static Tensor shuffle(const Tensor& x, std::int64_t groups) {
    return x.view({x.size(0), groups, x.size(1) / groups, x.size(2), x.size(3)}).transpose(1, 2).contiguous().view({x.size(0), -1, x.size(2), x.size(3)});
  }
  Tensor forward(const Tensor& images) {
    const auto halves = stem(images).chunk(2, 1);
    Tensor x = shuffle(torch::cat({halves[0], branch->forward(halves[1])}, 1), 2);
    x = shuffle(grouped(x), 2);
    return head(x.mean({2, 3}));
  }
  nn::Conv2d stem;
  nn::Sequential branch;
  nn::Conv2d grouped;
  nn::Linear head;
};

/// ConvNeXt: depthwise 7x7, layer norm and linear layers on channels last, layer scale.
struct ConvNext : nn::Module {
  ConvNext()
      : stem(register_module("stem", nn::Conv2d(nn::Conv2dOptions(3, 8, 2).stride(2)))),
        dwconv(register_module("dwconv", nn::Conv2d(nn::Conv2dOptions(8, 8, 7).padding(3).groups(8)))),
        norm(register_module("norm", nn::LayerNorm(nn::LayerNormOptions({8})))), pwconv1(register_module("pwconv1", nn::Linear(8, 32))),
        pwconv2(register_module("pwconv2", nn::Linear(32, 8))), head(register_module("head", nn::Linear(8, 5))) {
    gamma = register_parameter("gamma", torch::ones(8));
  }
  Tensor forward(const Tensor& images) {
    const Tensor x = stem(images);
    const Tensor y = gamma * pwconv2(torch::gelu(pwconv1(norm(dwconv(x).permute({0, 2, 3, 1})))));
    return head((x + y.permute({0, 3, 1, 2})).mean({-2, -1}));
  }
  nn::Conv2d stem, dwconv;
  nn::LayerNorm norm;
  nn::Linear pwconv1, pwconv2, head;
  Tensor gamma;
};

/// Weights are standardised in forward, activations by group norm (Big Transfer).
struct WeightStandardised : nn::Module {
  WeightStandardised()
      : conv1(register_module("conv1", conv(3, 8, 3))), norm1(register_module("norm1", nn::GroupNorm(nn::GroupNormOptions(4, 8)))),
        conv2(register_module("conv2", conv(8, 8, 3, 2))), norm2(register_module("norm2", nn::GroupNorm(nn::GroupNormOptions(2, 8)))),
        head(register_module("head", nn::Linear(8, 5))) {}
  static Tensor standardised(const Tensor& weight) {
    const auto [var, mean] = torch::var_mean(weight, at::IntArrayRef{1, 2, 3}, false, true);
    return (weight - mean) / torch::sqrt(var + 1e-5);
  }
  Tensor forward(const Tensor& images) {
    Tensor x = torch::relu(norm1(torch::conv2d(images, standardised(conv1->weight), {}, 1, 1)));
    x = torch::relu(norm2(torch::conv2d(x, standardised(conv2->weight), {}, 2, 1)));
    return head(x.mean({2, 3}));
  }
  nn::Conv2d conv1;
  nn::GroupNorm norm1;
  nn::Conv2d conv2;
  nn::GroupNorm norm2;
  nn::Linear head;
};

}  // namespace

std::vector<Row> convolution_rows() {
  const Input images = real({kSamples, 3, 8, 8});
  const Input labels = ids({kSamples}, 5);
  return {
      row<ResNet>("ResNet_bottleneck", {images, labels}, likelihood, {.stages = 4}),
      row<ChannelsLastResNet>("ResNet_channels_last", {images, labels}, likelihood),
      row<DenseNet>("DenseNet", {images, labels}, likelihood),
      row<InvertedNet<false>>("MobileNet_v2", {images, labels}, likelihood),
      row<InvertedNet<true>>("EfficientNet", {images, labels}, likelihood, {.stages = 4}),
      row<ShuffleNet>("ShuffleNet", {images, labels}, likelihood, {.stages = 4}),
      row<ConvNext>("ConvNext", {images, labels}, likelihood),
      row<WeightStandardised>("GroupNorm_weight_standardised", {images, labels}, likelihood, {.plan = plan_for_cnn}),
  };
}

}  // namespace tessera::battery
