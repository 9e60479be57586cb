// SPDX-License-Identifier: Apache-2.0
// Sequences read step by step, by convolution or as bags.
#include "battery/battery.h"

namespace tessera::battery {
namespace {

namespace nn = torch::nn;

/// Mamba-like: depthwise causal convolution, input-dependent steps, a scan written as a loop.
struct MambaLike : nn::Module {
  static constexpr std::int64_t kWidth = 12, kInner = 16, kState = 4;
  MambaLike()
      : embed(register_module("embed", nn::Embedding(20, kWidth))), in_proj(register_module("in_proj", nn::Linear(kWidth, 2 * kInner))),
        conv1d(register_module("conv1d", nn::Conv1d(nn::Conv1dOptions(kInner, kInner, 3).groups(kInner).padding(2)))),
        x_proj(register_module("x_proj", nn::Linear(nn::LinearOptions(kInner, 2 + 2 * kState).bias(false)))),
        dt_proj(register_module("dt_proj", nn::Linear(2, kInner))), out_proj(register_module("out_proj", nn::Linear(kInner, kWidth))),
        head(register_module("head", nn::Linear(kWidth, 20))) {
    a_log = register_parameter("a_log", torch::zeros({kInner, kState}));
    d = register_parameter("d", torch::ones(kInner));
  }
  Tensor forward(const Tensor& ids) {
    const std::int64_t tokens = ids.size(1);
    const Tensor input = embed(ids);
    const auto xz = in_proj(input).chunk(2, -1);
    const Tensor x = torch::silu(conv1d(xz[0].transpose(1, 2)).slice(2, 0, tokens).transpose(1, 2));
    const auto parts = x_proj(x).split_with_sizes({2, kState, kState}, -1);
    const Tensor delta = torch::softplus(dt_proj(parts[0]));
    const Tensor decay = torch::exp(delta.unsqueeze(-1) * -torch::exp(a_log));
    const Tensor drive = delta.unsqueeze(-1) * parts[1].unsqueeze(2) * x.unsqueeze(-1);
    Tensor state = torch::zeros({x.size(0), kInner, kState}, x.options().requires_grad(false));
    Tensors outputs;
    for (std::int64_t t = 0; t < tokens; ++t) {
      state = decay.select(1, t) * state + drive.select(1, t);
      outputs.push_back((state * parts[2].select(1, t).unsqueeze(1)).sum(-1));
    }
    const Tensor y = (torch::stack(outputs, 1) + x * d) * torch::silu(xz[1]);
    return head(input + out_proj(y));
  }
  nn::Embedding embed;
  nn::Linear in_proj;
  nn::Conv1d conv1d;
  nn::Linear x_proj, dt_proj, out_proj, head;
  Tensor a_log, d;
};

/// RWKV-like: token shift, an exponentially decaying average with a running maximum.
struct RwkvLike : nn::Module {
  static constexpr std::int64_t kWidth = 12;
  RwkvLike()
      : embed(register_module("embed", nn::Embedding(20, kWidth))), norm(register_module("norm", nn::LayerNorm(nn::LayerNormOptions({kWidth})))),
        key(register_module("key", nn::Linear(nn::LinearOptions(kWidth, kWidth).bias(false)))),
        value(register_module("value", nn::Linear(nn::LinearOptions(kWidth, kWidth).bias(false)))),
        receptance(register_module("receptance", nn::Linear(nn::LinearOptions(kWidth, kWidth).bias(false)))),
        head(register_module("head", nn::Linear(kWidth, 20))) {
    decay = register_parameter("decay", torch::zeros(kWidth));
    first = register_parameter("first", torch::zeros(kWidth));
    mix = register_parameter("mix", torch::zeros({1, 1, kWidth}));
  }
  Tensor forward(const Tensor& ids) {
    const Tensor x = norm(embed(ids));
    const Tensor shifted = nn::functional::pad(x, nn::functional::PadFuncOptions({0, 0, 1, -1}));
    const Tensor mixed = x * mix.sigmoid() + shifted * (1 - mix.sigmoid());
    const auto keys = key(mixed).unbind(1), values = value(mixed).unbind(1);
    Tensor sum = torch::zeros_like(keys[0]), weight = torch::zeros_like(keys[0]), most = torch::full_like(keys[0], -1e30);
    Tensors outputs;
    for (std::size_t t = 0; t < keys.size(); ++t) {
      const Tensor now = torch::maximum(most, first + keys[t]);
      const Tensor old_share = torch::exp(most - now), new_share = torch::exp(first + keys[t] - now);
      outputs.push_back((old_share * sum + new_share * values[t]) / (old_share * weight + new_share));
      const Tensor next = torch::maximum(most - decay.exp(), keys[t]);
      const Tensor keep = torch::exp(most - decay.exp() - next), add = torch::exp(keys[t] - next);
      sum = keep * sum + add * values[t];
      weight = keep * weight + add;
      most = next;
    }
    return head(x + receptance(mixed).sigmoid() * torch::stack(outputs, 1));
  }
  nn::Embedding embed;
  nn::LayerNorm norm;
  nn::Linear key, value, receptance, head;
  Tensor decay, first, mix;
};

/// LSTM over packed sentences, its last states start a GRU.
struct Seq2Seq : nn::Module {
  static constexpr std::int64_t kWidth = 12;
  Seq2Seq()
      : embed(register_module("embed", nn::Embedding(20, kWidth))),
        encoder(register_module("encoder", nn::LSTM(nn::LSTMOptions(kWidth, kWidth).batch_first(true).bidirectional(true)))),
        bridge(register_module("bridge", nn::Linear(2 * kWidth, kWidth))),
        decoder(register_module("decoder", nn::GRU(nn::GRUOptions(kWidth, kWidth).num_layers(2).batch_first(true)))),
        head(register_module("head", nn::Linear(kWidth, 20))) {}
  Tensor forward(const Tensor& source, const Tensor& target) {
    const Tensor lengths = full_lengths.narrow(0, 0, source.size(0));
    const auto packed = nn::utils::rnn::pack_padded_sequence(embed(source), lengths, true, false);
    const auto states = std::get<0>(std::get<1>(encoder->forward_with_packed_input(packed)));
    const Tensor start = torch::tanh(bridge(torch::cat({states.select(0, 0), states.select(0, 1)}, -1)));
    return head(std::get<0>(decoder->forward(embed(target), start.unsqueeze(0).repeat({2, 1, 1}))));
  }
  nn::Embedding embed;
  nn::LSTM encoder;
  nn::Linear bridge;
  nn::GRU decoder;
  nn::Linear head;
  const Tensor full_lengths = torch::tensor({5, 3, 6, 2, 4});
};

/// LSTM cells in a loop that reads its own output, with attention over the encoder's states.
struct AttentiveDecoder : nn::Module {
  static constexpr std::int64_t kWidth = 12;
  AttentiveDecoder()
      : embed(register_module("embed", nn::Embedding(20, kWidth))),
        encoder(register_module("encoder", nn::GRU(nn::GRUOptions(kWidth, kWidth).batch_first(true)))),
        cell(register_module("cell", nn::LSTMCell(2 * kWidth, kWidth))), head(register_module("head", nn::Linear(kWidth, 20))) {}
  Tensor forward(const Tensor& source) {
    const Tensor memory = std::get<0>(encoder(embed(source)));
    Tensor h = memory.mean(1), c = torch::zeros_like(h), word = embed(source.select(1, 0));
    Tensors outputs;
    for (int t = 0; t < 3; ++t) {
      const Tensor shares = torch::softmax(torch::bmm(memory, h.unsqueeze(2)).squeeze(2), 1);
      const Tensor context = torch::bmm(shares.unsqueeze(1), memory).squeeze(1);
      std::tie(h, c) = cell(torch::cat({word, context}, 1), std::make_tuple(h, c));
      outputs.push_back(head(h));
      word = embed(outputs.back().argmax(-1));
    }
    return torch::stack(outputs, 1);
  }
  nn::Embedding embed;
  nn::GRU encoder;
  nn::LSTMCell cell;
  nn::Linear head;
};

/// Characters: several widths of convolution, the maximum over time, a highway.
struct CharCnn : nn::Module {
  CharCnn() : embed(register_module("embed", nn::Embedding(16, 8))), highway(register_module("highway", nn::Linear(24, 48))),
              head(register_module("head", nn::Linear(24, 4))) {
    register_module("convs", convs);
    for (int width = 2; width <= 4; ++width) convs->push_back(nn::Conv1d(8, 8, width));
  }
  Tensor forward(const Tensor& ids) {
    const Tensor x = embed(ids).transpose(1, 2);
    Tensors features;
    for (const auto& conv : *convs) features.push_back(std::get<0>(torch::relu(conv->as<nn::Conv1d>()->forward(x)).max(2)));
    const Tensor all = torch::cat(features, 1);
    const auto parts = highway(all).chunk(2, 1);
    const Tensor share = parts[1].sigmoid();
    return head(share * torch::relu(parts[0]) + (1 - share) * all);
  }
  nn::Embedding embed;
  nn::ModuleList convs;
  nn::Linear highway, head;
};

/// TCN: dilated causal convolutions with chomp and residuals.
struct Tcn : nn::Module {
  Tcn() : head(register_module("head", nn::Linear(8, 1))) {
    register_module("convs", convs);
    register_module("downsample", downsample);
    for (int i = 0; i < 3; ++i) {
      const std::int64_t dilation = std::int64_t{1} << i;
      convs->push_back(nn::Conv1d(nn::Conv1dOptions(i == 0 ? 3 : 8, 8, 3).dilation(dilation).padding(2 * dilation)));
    }
  }
  Tensor forward(Tensor x) {
    for (std::size_t i = 0; i < convs->size(); ++i) {
      const Tensor y = convs[i]->as<nn::Conv1d>()->forward(x);
      const Tensor chomped = y.slice(2, 0, x.size(2)).contiguous();
      x = torch::relu(torch::relu(chomped) + (i == 0 ? downsample(x) : x));
    }
    return head(x.select(2, -1)).squeeze(1);
  }
  nn::ModuleList convs;
  nn::Conv1d downsample{nn::Conv1dOptions(3, 8, 1)};
  nn::Linear head;
};

/// Bags of words, with weights per word.
struct Bags : nn::Module {
  Bags() : bag(register_module("bag", nn::EmbeddingBag(nn::EmbeddingBagOptions(30, 8).mode(torch::kSum)))),
           average(register_module("average", nn::EmbeddingBag(30, 8))), head(register_module("head", nn::Linear(16, 4))) {}
  Tensor forward(const Tensor& ids, const Tensor& weights) {
    return head(torch::cat({bag->forward(ids, {}, weights), average(ids)}, 1));
  }
  nn::EmbeddingBag bag, average;
  nn::Linear head;
};

}  // namespace

std::vector<Row> recurrent_rows() {
  const Input text = ids({kSamples, 6}, 20);
  return {
      row<MambaLike>("Mamba_like", {text, text}, likelihood),
      row<RwkvLike>("Rwkv_like", {text, text}, likelihood),
      row<Seq2Seq>("Seq2Seq_packed", {text, text, text}, likelihood),
      row<AttentiveDecoder>("AttentiveDecoder", {text, ids({kSamples, 3}, 20)}, likelihood),
      row<CharCnn>("CharCnn", {ids({kSamples, 9}, 16), ids({kSamples}, 4)}, likelihood),
      row<Tcn>("Tcn", {real({kSamples, 3, 12}), real({kSamples})}, squares),
      row<Bags>("EmbeddingBags", {ids({kSamples, 6}, 30), real({kSamples, 6}), ids({kSamples}, 4)}, likelihood),
  };
}

}  // namespace tessera::battery
