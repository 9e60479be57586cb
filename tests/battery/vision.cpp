// SPDX-License-Identifier: Apache-2.0
// Vision by patches and windows; images out of images and out of noise.
#include "battery/battery.h"

namespace tessera::battery {
namespace {

namespace nn = torch::nn;

/// Vision transformer: patches, a class token, learned positions, pre-norm blocks.
struct VitBlockImpl : nn::Module {
  static constexpr std::int64_t kWidth = 16, kHeads = 4;
  VitBlockImpl()
      : norm1(register_module("norm1", nn::LayerNorm(nn::LayerNormOptions({kWidth})))), qkv(register_module("qkv", nn::Linear(kWidth, 3 * kWidth))),
        proj(register_module("proj", nn::Linear(kWidth, kWidth))), norm2(register_module("norm2", nn::LayerNorm(nn::LayerNormOptions({kWidth})))),
        up(register_module("up", nn::Linear(kWidth, 24))), down(register_module("down", nn::Linear(24, kWidth))) {}
  Tensor attend(const Tensor& x) {
    const std::int64_t samples = x.size(0), tokens = x.size(1);
    const auto parts = qkv(x).reshape({samples, tokens, 3, kHeads, kWidth / kHeads}).permute({2, 0, 3, 1, 4}).unbind(0);
    const Tensor shares = torch::softmax((parts[0] * 0.5).matmul(parts[1].transpose(-2, -1)), -1);
    return proj(shares.matmul(parts[2]).transpose(1, 2).reshape({samples, tokens, kWidth}));
  }
  Tensor forward(const Tensor& x) {
    const Tensor h = x + attend(norm1(x));
    return h + down(torch::gelu(up(norm2(h))));
  }
  nn::LayerNorm norm1;
  nn::Linear qkv, proj;
  nn::LayerNorm norm2;
  nn::Linear up, down;
};
TORCH_MODULE(VitBlock);

struct Vit : nn::Module {
  Vit()
      : patch(register_module("patch", nn::Conv2d(nn::Conv2dOptions(3, 16, 4).stride(4)))),
        blocks(register_module("blocks", nn::Sequential(VitBlock(), VitBlock()))),
        norm(register_module("norm", nn::LayerNorm(nn::LayerNormOptions({16})))), head(register_module("head", nn::Linear(16, 5))) {
    token = register_parameter("token", torch::zeros({1, 1, 16}));
    positions = register_parameter("positions", torch::zeros({1, 5, 16}));
  }
  Tensor forward(const Tensor& images) {
    const Tensor patches = patch(images).flatten(2).transpose(1, 2);
    const Tensor x = torch::cat({token.expand({images.size(0), -1, -1}), patches}, 1) + positions;
    return head(norm(blocks->forward(x)).select(1, 0));
  }
  nn::Conv2d patch;
  nn::Sequential blocks;
  nn::LayerNorm norm;
  nn::Linear head;
  Tensor token, positions;
};

/// Swin: windows, shifted by roll, a bias from a table by relative position.
struct Swin : nn::Module {
  static constexpr std::int64_t kWidth = 8, kHeads = 2, kWindow = 2;
  Swin()
      : embed(register_module("embed", nn::Conv2d(nn::Conv2dOptions(3, kWidth, 2).stride(2)))),
        norm(register_module("norm", nn::LayerNorm(nn::LayerNormOptions({kWidth})))), qkv(register_module("qkv", nn::Linear(kWidth, 3 * kWidth))),
        proj(register_module("proj", nn::Linear(kWidth, kWidth))), reduction(register_module("reduction", nn::Linear(nn::LinearOptions(4 * kWidth, 12).bias(false)))),
        head(register_module("head", nn::Linear(12, 5))) {
    table = register_parameter("table", torch::zeros({(2 * kWindow - 1) * (2 * kWindow - 1), kHeads}));
    const Tensor places = torch::stack(torch::meshgrid({torch::arange(kWindow), torch::arange(kWindow)}, "ij")).flatten(1);
    const Tensor apart = places.unsqueeze(2) - places.unsqueeze(1) + (kWindow - 1);
    index = register_buffer("index", apart[0] * (2 * kWindow - 1) + apart[1]);
  }
  Tensor attend(const Tensor& x, std::int64_t shift) {
    const std::int64_t samples = x.size(0), height = x.size(1), width = x.size(2), tokens = kWindow * kWindow;
    const Tensor shifted = shift > 0 ? torch::roll(x, {-shift, -shift}, {1, 2}) : x;
    const Tensor windows = shifted.view({samples, height / kWindow, kWindow, width / kWindow, kWindow, kWidth})
                               .permute({0, 1, 3, 2, 4, 5}).contiguous().view({-1, tokens, kWidth});
    const auto parts = qkv(windows).reshape({-1, tokens, 3, kHeads, kWidth / kHeads}).permute({2, 0, 3, 1, 4});
    const Tensor bias = table.index({index.view(-1)}).view({tokens, tokens, -1}).permute({2, 0, 1}).contiguous();
    const Tensor scores = torch::matmul(parts[0] * 0.5, parts[1].transpose(-2, -1)) + bias.unsqueeze(0);
    const Tensor mixed = torch::matmul(torch::softmax(scores, -1), parts[2]).transpose(1, 2).reshape({-1, tokens, kWidth});
    const Tensor whole = proj(mixed).view({samples, height / kWindow, width / kWindow, kWindow, kWindow, kWidth})
                             .permute({0, 1, 3, 2, 4, 5}).contiguous().view({samples, height, width, kWidth});
    return shift > 0 ? torch::roll(whole, {shift, shift}, {1, 2}) : whole;
  }
  Tensor forward(const Tensor& images) {
    using torch::indexing::None;
    using torch::indexing::Slice;
    Tensor x = embed(images).permute({0, 2, 3, 1});
    x = x + attend(norm(x), 0);
    x = x + attend(norm(x), 1);
    const auto quarter = [&](int row, int column) { return x.index({Slice(), Slice(row, None, 2), Slice(column, None, 2), Slice()}); };
    const Tensor merged = reduction(torch::cat({quarter(0, 0), quarter(1, 0), quarter(0, 1), quarter(1, 1)}, -1));
    return head(merged.flatten(1, 2).mean(1));
  }
  nn::Conv2d embed;
  nn::LayerNorm norm;
  nn::Linear qkv, proj, reduction, head;
  Tensor table, index;
};

/// MLP-Mixer: products along tokens, then along channels.
struct Mixer : nn::Module {
  Mixer()
      : patch(register_module("patch", nn::Conv2d(nn::Conv2dOptions(3, 12, 2).stride(2)))), norm1(register_module("norm1", nn::LayerNorm(nn::LayerNormOptions({12})))),
        tokens(register_module("tokens", nn::Sequential(nn::Linear(16, 20), nn::GELU(), nn::Linear(20, 16)))),
        norm2(register_module("norm2", nn::LayerNorm(nn::LayerNormOptions({12})))),
        channels(register_module("channels", nn::Sequential(nn::Linear(12, 20), nn::GELU(), nn::Linear(20, 12)))), head(register_module("head", nn::Linear(12, 5))) {}
  Tensor forward(const Tensor& images) {
    Tensor x = patch(images).flatten(2).transpose(1, 2);
    x = x + tokens->forward(norm1(x).transpose(1, 2)).transpose(1, 2);
    x = x + channels->forward(norm2(x));
    return head(x.mean(1));
  }
  nn::Conv2d patch;
  nn::LayerNorm norm1;
  nn::Sequential tokens;
  nn::LayerNorm norm2;
  nn::Sequential channels;
  nn::Linear head;
};

nn::Sequential double_conv(std::int64_t in, std::int64_t out) {
  return nn::Sequential(nn::Conv2d(nn::Conv2dOptions(in, out, 3).padding(1)), nn::BatchNorm2d(out), nn::ReLU(true),
                        nn::Conv2d(nn::Conv2dOptions(out, out, 3).padding(1)), nn::BatchNorm2d(out), nn::ReLU(true));
}

/// U-Net: skips over two scales, transposed convolutions.
struct UNet : nn::Module {
  UNet()
      : down1(register_module("down1", double_conv(3, 6))), down2(register_module("down2", double_conv(6, 12))), bottom(register_module("bottom", double_conv(12, 24))),
        up2(register_module("up2", nn::ConvTranspose2d(nn::ConvTranspose2dOptions(24, 12, 2).stride(2)))), merge2(register_module("merge2", double_conv(24, 12))),
        up1(register_module("up1", nn::ConvTranspose2d(nn::ConvTranspose2dOptions(12, 6, 2).stride(2)))), merge1(register_module("merge1", double_conv(12, 6))),
        head(register_module("head", nn::Conv2d(6, 2, 1))) {}
  Tensor forward(const Tensor& images) {
    const Tensor a = down1->forward(images), b = down2->forward(torch::max_pool2d(a, 2)), c = bottom->forward(torch::max_pool2d(b, 2));
    const Tensor d = merge2->forward(torch::cat({b, up2(c)}, 1));
    return head(merge1->forward(torch::cat({a, up1(d)}, 1)));
  }
  nn::Sequential down1, down2, bottom;
  nn::ConvTranspose2d up2;
  nn::Sequential merge2;
  nn::ConvTranspose2d up1;
  nn::Sequential merge1;
  nn::Conv2d head;
};

Tensor pixels(const Tensor& logits, const Tensor& target) { return nn::functional::cross_entropy(logits, target); }

/// DCGAN: one loss of generator and discriminator.
struct Dcgan : nn::Module {
  Dcgan()
      : generator(register_module("generator", nn::Sequential(nn::ConvTranspose2d(nn::ConvTranspose2dOptions(6, 8, 4).bias(false)), nn::BatchNorm2d(8), nn::ReLU(true),
                                                              nn::ConvTranspose2d(nn::ConvTranspose2dOptions(8, 3, 4).stride(2).padding(1)), nn::Tanh()))),
        discriminator(register_module("discriminator", nn::Sequential(nn::Conv2d(nn::Conv2dOptions(3, 8, 4).stride(2).padding(1)), nn::LeakyReLU(nn::LeakyReLUOptions().negative_slope(0.2).inplace(true)),
                                                                      nn::Conv2d(nn::Conv2dOptions(8, 1, 4)), nn::Flatten()))) {}
  Tensor forward(const Tensor& noise, const Tensor& images) {
    const Tensor made = generator->forward(noise.view({noise.size(0), -1, 1, 1}));
    const Tensor real_score = discriminator->forward(images), made_score = discriminator->forward(made);
    return torch::binary_cross_entropy_with_logits(real_score, torch::ones_like(real_score)) +
           torch::binary_cross_entropy_with_logits(made_score, torch::zeros_like(made_score));
  }
  nn::Sequential generator, discriminator;
};

/// VAE with the noise given; reconstruction and divergence.
struct Vae : nn::Module {
  Vae()
      : encoder(register_module("encoder", nn::Sequential(nn::Linear(20, 16), nn::ReLU()))), mean(register_module("mean", nn::Linear(16, 4))),
        log_var(register_module("log_var", nn::Linear(16, 4))), decoder(register_module("decoder", nn::Sequential(nn::Linear(4, 16), nn::ReLU(), nn::Linear(16, 20)))) {}
  Tensor forward(const Tensor& x, const Tensor& noise) {
    const Tensor h = encoder->forward(x), mu = mean(h), lv = log_var(h);
    const Tensor made = decoder->forward(mu + noise * torch::exp(0.5 * lv));
    const Tensor divergence = -0.5 * torch::sum(1 + lv - mu.pow(2) - lv.exp());
    return (nn::functional::mse_loss(made, x, nn::functional::MSELossFuncOptions(torch::kSum)) + divergence) / x.size(0);
  }
  nn::Sequential encoder;
  nn::Linear mean, log_var;
  nn::Sequential decoder;
};

}  // namespace

std::vector<Row> vision_rows() {
  const Input images = real({kSamples, 3, 8, 8});
  const Input labels = ids({kSamples}, 5);
  return {
      row<Vit>("Vit", {images, labels}, likelihood, {.plan = [](const auto& names) { return plan_for_transformer(names); }}),
      row<Swin>("Swin", {images, labels}, likelihood),
      row<Mixer>("MlpMixer", {images, labels}, likelihood, {.stages = 4}),
      row<UNet>("UNet", {images, ids({kSamples, 8, 8}, 2)}, pixels, {.stages = 4}),
      row<Dcgan>("Dcgan", {real({kSamples, 6}), images}, itself),
      row<Vae>("Vae", {real({kSamples, 20}), real({kSamples, 4})}, itself),
  };
}

}  // namespace tessera::battery
