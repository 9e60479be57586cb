// SPDX-License-Identifier: Apache-2.0
// Images at several scales, warped images, and diffusion.
#include "battery/battery.h"

namespace tessera::battery {
namespace {

namespace nn = torch::nn;

/// Feature pyramid: lateral convolutions, upsampled sums, one head for all scales.
struct Fpn : nn::Module {
  Fpn()
      : c1(register_module("c1", nn::Conv2d(nn::Conv2dOptions(3, 6, 3).stride(2).padding(1)))), c2(register_module("c2", nn::Conv2d(nn::Conv2dOptions(6, 8, 3).stride(2).padding(1)))),
        lateral1(register_module("lateral1", nn::Conv2d(6, 6, 1))), lateral2(register_module("lateral2", nn::Conv2d(8, 6, 1))),
        smooth(register_module("smooth", nn::Conv2d(nn::Conv2dOptions(6, 6, 3).padding(1)))), head(register_module("head", nn::Conv2d(6, 4, 1))) {}
  Tensor forward(const Tensor& images) {
    namespace F = nn::functional;
    const Tensor a = torch::relu(c1(images)), b = torch::relu(c2(a));
    const Tensor top = lateral2(b);
    const auto size = std::vector<std::int64_t>{a.size(2), a.size(3)};
    const Tensor raised = F::interpolate(top, F::InterpolateFuncOptions().size(size).mode(torch::kNearest));
    const Tensor low = smooth(lateral1(a) + raised);
    return torch::cat({head(low).flatten(2), head(top).flatten(2)}, 2).mean(2);
  }
  nn::Conv2d c1, c2, lateral1, lateral2, smooth, head;
};

/// Super-resolution by channels that become pixels, over a bilinear guess.
struct SuperResolution : nn::Module {
  SuperResolution()
      : first(register_module("first", nn::Conv2d(nn::Conv2dOptions(3, 8, 3).padding(1)))), act(register_module("act", nn::PReLU())),
        body(register_module("body", nn::Conv2d(nn::Conv2dOptions(8, 8, 3).padding(1)))), last(register_module("last", nn::Conv2d(nn::Conv2dOptions(8, 12, 3).padding(1)))) {}
  Tensor forward(const Tensor& images) {
    namespace F = nn::functional;
    const Tensor x = act(first(images));
    const Tensor detail = torch::pixel_shuffle(last(x + body(x)), 2);
    return detail + F::interpolate(images, F::InterpolateFuncOptions().scale_factor(std::vector<double>{2, 2}).mode(torch::kBilinear).align_corners(false));
  }
  nn::Conv2d first;
  nn::PReLU act;
  nn::Conv2d body, last;
};

/// Spatial transformer: a small net says how the image is to be turned.
struct SpatialTransformer : nn::Module {
  SpatialTransformer()
      : localise(register_module("localise", nn::Sequential(nn::Conv2d(3, 4, 3), nn::MaxPool2d(2), nn::ReLU(), nn::Flatten(), nn::Linear(36, 8), nn::ReLU(), nn::Linear(8, 6)))),
        conv(register_module("conv", nn::Conv2d(3, 6, 3))), head(register_module("head", nn::Linear(6, 5))) {}
  Tensor forward(const Tensor& images) {
    const Tensor theta = localise->forward(images).view({-1, 2, 3}) * 0.1 + torch::eye(2, 3, images.options());
    const Tensor grid = torch::affine_grid_generator(theta, images.sizes(), false);
    const Tensor turned = torch::grid_sampler(images, grid, 0, 0, false);
    return head(torch::relu(conv(turned)).amax({2, 3}));
  }
  nn::Sequential localise;
  nn::Conv2d conv;
  nn::Linear head;
};

Tensor time_embedding(const Tensor& steps, std::int64_t width) {
  const auto options = torch::dtype(torch::kDouble).device(steps.device());
  const Tensor frequencies = torch::exp(-std::log(100.0) * torch::arange(0, width / 2, options) / (width / 2));
  const Tensor angles = steps.to(torch::kDouble).unsqueeze(1) * frequencies.unsqueeze(0);
  return torch::cat({angles.cos(), angles.sin()}, -1);
}

/// A block of a diffusion U-Net: the time scales and shifts after group norm; attention over pixels.
struct DiffusionUNet : nn::Module {
  DiffusionUNet()
      : time(register_module("time", nn::Sequential(nn::Linear(8, 16), nn::SiLU(), nn::Linear(16, 16)))), in(register_module("in", nn::Conv2d(nn::Conv2dOptions(3, 8, 3).padding(1)))),
        norm1(register_module("norm1", nn::GroupNorm(4, 8))), conv1(register_module("conv1", nn::Conv2d(nn::Conv2dOptions(8, 8, 3).padding(1)))),
        emb(register_module("emb", nn::Linear(16, 16))), norm2(register_module("norm2", nn::GroupNorm(4, 8))),
        conv2(register_module("conv2", nn::Conv2d(nn::Conv2dOptions(8, 8, 3).padding(1)))), qkv(register_module("qkv", nn::Conv1d(8, 24, 1))),
        out(register_module("out", nn::Conv2d(8, 3, 1))) {}
  Tensor forward(const Tensor& images, const Tensor& steps) {
    const Tensor t = time->forward(time_embedding(steps, 8));
    const Tensor x = in(images);
    const auto parts = emb(torch::silu(t)).unsqueeze(-1).unsqueeze(-1).chunk(2, 1);
    Tensor h = conv1(torch::silu(norm1(x)));
    h = x + conv2(torch::silu(norm2(h) * (1 + parts[0]) + parts[1]));
    const auto heads = qkv(h.flatten(2)).chunk(3, 1);
    const Tensor shares = torch::softmax(torch::einsum("bct,bcs->bts", {heads[0] * 0.35, heads[1]}), -1);
    h = h + torch::einsum("bts,bcs->bct", {shares, heads[2]}).reshape_as(h);
    return out(h);
  }
  nn::Sequential time;
  nn::Conv2d in;
  nn::GroupNorm norm1;
  nn::Conv2d conv1;
  nn::Linear emb;
  nn::GroupNorm norm2;
  nn::Conv2d conv2;
  nn::Conv1d qkv;
  nn::Conv2d out;
};

/// DiT: shift, scale and gate of every block come from the time and the label.
struct Dit : nn::Module {
  static constexpr std::int64_t kWidth = 12;
  Dit()
      : patch(register_module("patch", nn::Conv2d(nn::Conv2dOptions(3, kWidth, 2).stride(2)))), time(register_module("time", nn::Sequential(nn::Linear(8, kWidth), nn::SiLU(), nn::Linear(kWidth, kWidth)))),
        label(register_module("label", nn::Embedding(5, kWidth))), modulation(register_module("modulation", nn::Sequential(nn::SiLU(), nn::Linear(kWidth, 6 * kWidth)))),
        norm(register_module("norm", nn::LayerNorm(nn::LayerNormOptions({kWidth}).elementwise_affine(false)))), qkv(register_module("qkv", nn::Linear(kWidth, 3 * kWidth))),
        proj(register_module("proj", nn::Linear(kWidth, kWidth))), mlp(register_module("mlp", nn::Sequential(nn::Linear(kWidth, 24), nn::GELU(), nn::Linear(24, kWidth)))),
        out(register_module("out", nn::Linear(kWidth, 12))) {}
  static Tensor modulate(const Tensor& x, const Tensor& shift, const Tensor& scale) { return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1); }
  Tensor forward(const Tensor& images, const Tensor& steps, const Tensor& labels) {
    Tensor x = patch(images).flatten(2).transpose(1, 2);
    const auto m = modulation->forward(time->forward(time_embedding(steps, 8)) + label(labels)).chunk(6, 1);
    const auto parts = qkv(modulate(norm(x), m[0], m[1])).view({x.size(0), x.size(1), 3, 2, kWidth / 2}).permute({2, 0, 3, 1, 4}).unbind(0);
    const Tensor mixed = torch::scaled_dot_product_attention(parts[0], parts[1], parts[2]);
    x = x + m[2].unsqueeze(1) * proj(mixed.transpose(1, 2).reshape(x.sizes()));
    x = x + m[5].unsqueeze(1) * mlp->forward(modulate(norm(x), m[3], m[4]));
    const Tensor pixels = out(x).view({x.size(0), 4, 4, 2, 2, 3});
    return torch::einsum("nhwpqc->nchpwq", {pixels}).reshape({x.size(0), 3, 8, 8});
  }
  nn::Conv2d patch;
  nn::Sequential time;
  nn::Embedding label;
  nn::Sequential modulation;
  nn::LayerNorm norm;
  nn::Linear qkv, proj;
  nn::Sequential mlp;
  nn::Linear out;
};

/// Siamese nets: one net for two images, the cosine between what it says.
struct Siamese : nn::Module {
  Siamese() : body(register_module("body", nn::Sequential(nn::Conv2d(3, 6, 3), nn::ReLU(), nn::MaxPool2d(2), nn::Flatten(), nn::Linear(54, 8)))) {}
  Tensor forward(const Tensor& first, const Tensor& second, const Tensor& same) {
    return nn::functional::cosine_embedding_loss(body->forward(first), body->forward(second), same * 2 - 1, nn::functional::CosineEmbeddingLossFuncOptions().margin(0.1));
  }
  nn::Sequential body;
};

/// Capsules: routing by agreement, three rounds.
struct Capsules : nn::Module {
  Capsules() : primary(register_module("primary", nn::Conv2d(nn::Conv2dOptions(3, 8, 3).stride(2)))) {
    weight = register_parameter("weight", torch::zeros({1, 18, 3, 4, 4}));
  }
  static Tensor squash(const Tensor& x) {
    const Tensor square = x.pow(2).sum(-1, true);
    return square / (1 + square) * x / (square.sqrt() + 1e-8);
  }
  Tensor forward(const Tensor& images) {
    const Tensor u = squash(primary(images).view({images.size(0), 2, 4, 3, 3}).permute({0, 1, 3, 4, 2}).reshape({images.size(0), 18, 4}));
    const Tensor votes = torch::matmul(weight, u.unsqueeze(2).unsqueeze(-1)).squeeze(-1);
    Tensor logits = torch::zeros({images.size(0), 18, 3, 1}, images.options()), v;
    for (int round = 0; round < 3; ++round) {
      v = squash((torch::softmax(logits, 2) * votes).sum(1, true));
      logits = logits + (votes * v).sum(-1, true);
    }
    return torch::linalg_vector_norm(v.squeeze(1), 2, {-1}, false, c10::nullopt);
  }
  nn::Conv2d primary;
  Tensor weight;
};

/// Graph convolution with a dense adjacency that is made symmetric and normalised in forward.
struct GraphNet : nn::Module {
  GraphNet() : first(register_module("first", nn::Linear(6, 8))), second(register_module("second", nn::Linear(8, 8))), head(register_module("head", nn::Linear(8, 5))) {}
  Tensor forward(const Tensor& nodes, const Tensor& edges) {
    const Tensor adjacency = ((edges + edges.transpose(1, 2)) > 0.5).to(nodes.dtype()) + torch::eye(edges.size(1), nodes.options());
    const Tensor root = adjacency.sum(-1).pow(-0.5);
    const Tensor normed = root.unsqueeze(-1) * adjacency * root.unsqueeze(-2);
    Tensor x = torch::relu(torch::bmm(normed, first(nodes)));
    x = torch::relu(torch::matmul(normed, second(x)));
    return head(std::get<0>(x.max(1)));
  }
  nn::Linear first, second, head;
};

}  // namespace

std::vector<Row> image_rows() {
  const Input images = real({kSamples, 3, 8, 8});
  const Input labels = ids({kSamples}, 5);
  return {
      row<Fpn>("Fpn", {images, ids({kSamples}, 4)}, likelihood),
      row<SuperResolution>("PixelShuffle", {images, real({kSamples, 3, 16, 16})}, squares, {.stages = 4}),
      row<SpatialTransformer>("SpatialTransformer", {images, labels}, likelihood,
                              {.fallbacks = {{"aten::affine_grid_generator", "no rule: its sizes are those of the whole batch"}}}),
      row<DiffusionUNet>("DiffusionUNet", {images, ids({kSamples}, 50), images}, squares),
      row<Dit>("Dit", {images, ids({kSamples}, 50), labels, images}, squares),
      row<Siamese>("Siamese", {images, images, ids({kSamples}, 2)}, itself),
      row<Capsules>("Capsules", {images, real({kSamples, 3})}, squares),
      row<GraphNet>("GraphNet", {real({kSamples, 7, 6}), real({kSamples, 7, 7}), labels}, likelihood),
  };
}

}  // namespace tessera::battery
