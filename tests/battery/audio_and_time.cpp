// SPDX-License-Identifier: Apache-2.0
// Sound, and series over time.
#include "battery/battery.h"

namespace tessera::battery {
namespace {

namespace nn = torch::nn;

/// Conformer: half steps, attention, a gated depthwise convolution with batch norm.
struct ConformerBlockImpl : nn::Module {
  static constexpr std::int64_t kWidth = 12;
  ConformerBlockImpl()
      : ff1(register_module("ff1", nn::Sequential(nn::LayerNorm(nn::LayerNormOptions({kWidth})), nn::Linear(kWidth, 24), nn::SiLU(), nn::Linear(24, kWidth)))),
        attention_norm(register_module("attention_norm", nn::LayerNorm(nn::LayerNormOptions({kWidth})))),
        attention(register_module("attention", nn::MultiheadAttention(kWidth, 2))), norm(register_module("norm", nn::LayerNorm(nn::LayerNormOptions({kWidth})))),
        pointwise1(register_module("pointwise1", nn::Conv1d(kWidth, 2 * kWidth, 1))),
        depthwise(register_module("depthwise", nn::Conv1d(nn::Conv1dOptions(kWidth, kWidth, 3).padding(1).groups(kWidth)))),
        batch_norm(register_module("batch_norm", nn::BatchNorm1d(kWidth))), pointwise2(register_module("pointwise2", nn::Conv1d(kWidth, kWidth, 1))) {}
  Tensor forward(Tensor x) {
    x = x + 0.5 * ff1->forward(x);
    const Tensor n = attention_norm(x).transpose(0, 1);
    x = x + std::get<0>(attention(n, n, n)).transpose(0, 1);
    const Tensor gated = torch::glu(pointwise1(norm(x).transpose(1, 2)), 1);
    return x + pointwise2(torch::silu(batch_norm(depthwise(gated)))).transpose(1, 2);
  }
  nn::Sequential ff1;
  nn::LayerNorm attention_norm;
  nn::MultiheadAttention attention;
  nn::LayerNorm norm;
  nn::Conv1d pointwise1, depthwise;
  nn::BatchNorm1d batch_norm;
  nn::Conv1d pointwise2;
};
TORCH_MODULE(ConformerBlock);

struct Conformer : nn::Module {
  Conformer()
      : subsample(register_module("subsample", nn::Conv2d(nn::Conv2dOptions(1, 4, 3).stride(2).padding(1)))), in(register_module("in", nn::Linear(16, 12))),
        first(register_module("first", ConformerBlock())), second(register_module("second", ConformerBlock())), head(register_module("head", nn::Linear(12, 7))) {}
  Tensor forward(const Tensor& features) {
    const Tensor planes = torch::relu(subsample(features.unsqueeze(1)));
    return head(second(first(in(planes.transpose(1, 2).flatten(2)))));
  }
  nn::Conv2d subsample;
  nn::Linear in;
  ConformerBlock first, second;
  nn::Linear head;
};

/// wav2vec: strided convolutions over the wave, group norm after the first, positions by a grouped convolution.
struct Wav2Vec : nn::Module {
  Wav2Vec()
      : conv1(register_module("conv1", nn::Conv1d(nn::Conv1dOptions(1, 8, 6).stride(3).bias(false)))), norm(register_module("norm", nn::GroupNorm(nn::GroupNormOptions(8, 8)))),
        conv2(register_module("conv2", nn::Conv1d(nn::Conv1dOptions(8, 8, 3).stride(2).bias(false)))), layer_norm(register_module("layer_norm", nn::LayerNorm(nn::LayerNormOptions({8})))),
        project(register_module("project", nn::Linear(8, 12))), positions(register_module("positions", nn::Conv1d(nn::Conv1dOptions(12, 12, 4).padding(2).groups(4)))),
        head(register_module("head", nn::Linear(12, 5))) {}
  Tensor forward(const Tensor& wave) {
    Tensor x = torch::gelu(norm(conv1(wave.unsqueeze(1))));
    x = project(layer_norm(torch::gelu(conv2(x)).transpose(1, 2)));
    const Tensor placed = positions(x.transpose(1, 2)).slice(2, 0, -1);
    return head((x + torch::gelu(placed).transpose(1, 2)).mean(1));
  }
  nn::Conv1d conv1;
  nn::GroupNorm norm;
  nn::Conv1d conv2;
  nn::LayerNorm layer_norm;
  nn::Linear project;
  nn::Conv1d positions;
  nn::Linear head;
};

/// A spectrogram by stft, a matrix of filters, the logarithm, a convolution.
struct Spectrogram : nn::Module {
  Spectrogram() : gain(register_module("gain", nn::Linear(32, 32))), filters(register_module("filters", nn::Linear(nn::LinearOptions(9, 6).bias(false)))),
                  conv(register_module("conv", nn::Conv1d(6, 8, 3))), head(register_module("head", nn::Linear(8, 5))) {
    window = register_buffer("window", torch::hann_window(16, torch::kDouble));
  }
  Tensor forward(const Tensor& wave) {
    const Tensor waves = torch::stft(gain(wave), 16, 8, 16, window, true, "constant", false, true, true);
    const Tensor power = torch::view_as_real(waves).pow(2).sum(-1);
    const Tensor mel = torch::log(filters(power.transpose(1, 2)).abs() + 1e-3);
    return head(torch::relu(conv(mel.transpose(1, 2))).mean(2));
  }
  nn::Linear gain, filters;
  nn::Conv1d conv;
  nn::Linear head;
  Tensor window;
};

/// WaveNet: gated dilated convolutions with residuals and skips.
struct WaveNet : nn::Module {
  WaveNet() : in(register_module("in", nn::Conv1d(1, 8, 1))), head(register_module("head", nn::Conv1d(8, 6, 1))) {
    register_module("gates", gates);
    register_module("residuals", residuals);
    for (int i = 0; i < 3; ++i) {
      gates->push_back(nn::Conv1d(nn::Conv1dOptions(8, 16, 2).dilation(std::int64_t{1} << i)));
      residuals->push_back(nn::Conv1d(8, 8, 1));
    }
  }
  Tensor forward(const Tensor& wave) {
    Tensor x = in(wave.unsqueeze(1)), skips = torch::zeros_like(x);
    for (std::size_t i = 0; i < gates->size(); ++i) {
      const Tensor padded = torch::constant_pad_nd(x, {std::int64_t{1} << i, 0});
      const auto parts = gates[i]->as<nn::Conv1d>()->forward(padded).chunk(2, 1);
      const Tensor y = residuals[i]->as<nn::Conv1d>()->forward(torch::tanh(parts[0]) * torch::sigmoid(parts[1]));
      skips = skips + y;
      x = x + y;
    }
    return head(torch::relu(skips)).transpose(1, 2);
  }
  nn::Conv1d in;
  nn::ModuleList gates, residuals;
  nn::Conv1d head;
};

/// N-BEATS: each block takes its backcast away and adds its forecast.
struct NBeats : nn::Module {
  NBeats() {
    register_module("blocks", blocks);
    for (int i = 0; i < 4; ++i) blocks->push_back(nn::Sequential(nn::Linear(12, 16), nn::ReLU(), nn::Linear(16, 16), nn::ReLU(), nn::Linear(16, 16)));
  }
  Tensor forward(Tensor x) {
    Tensor forecast = torch::zeros({x.size(0), 4}, x.options());
    for (const auto& block : *blocks) {
      const auto parts = block->as<nn::Sequential>()->forward(x).split_with_sizes({12, 4}, 1);
      x = x - parts[0];
      forecast = forecast + parts[1];
    }
    return forecast;
  }
  nn::ModuleList blocks;
};

/// PatchTST: every channel alone, patches by unfold, normalised by its own mean and deviation.
struct PatchTst : nn::Module {
  PatchTst()
      : embed(register_module("embed", nn::Linear(4, 12))),
        encoder(register_module("encoder", nn::TransformerEncoderLayer(nn::TransformerEncoderLayerOptions(12, 2).dim_feedforward(16).dropout(0.0)))),
        head(register_module("head", nn::Linear(5 * 12, 4))) {
    positions = register_parameter("positions", torch::zeros({5, 12}));
  }
  Tensor forward(const Tensor& series) {
    const Tensor mean = series.mean(1, true).detach();
    const Tensor deviation = torch::sqrt(torch::var(series, 1, false, true) + 1e-5).detach();
    const Tensor x = ((series - mean) / deviation).permute({0, 2, 1});
    const Tensor patches = x.unfold(-1, 4, 2);
    const Tensor tokens = (embed(patches) + positions).reshape({-1, 5, 12});
    const Tensor coded = encoder(tokens.transpose(0, 1)).transpose(0, 1);
    const Tensor out = head(coded.reshape({x.size(0), x.size(1), 60})).permute({0, 2, 1});
    return out * deviation + mean;
  }
  nn::Linear embed;
  nn::TransformerEncoderLayer encoder;
  nn::Linear head;
  Tensor positions;
};

/// Informer-like: the most active queries attend, the others get the mean; then the series is halved by a convolution.
struct InformerLike : nn::Module {
  static constexpr std::int64_t kWidth = 8;
  InformerLike()
      : embed(register_module("embed", nn::Conv1d(nn::Conv1dOptions(3, kWidth, 3).padding(1).padding_mode(torch::kCircular)))), q(register_module("q", nn::Linear(kWidth, kWidth))),
        k(register_module("k", nn::Linear(kWidth, kWidth))), v(register_module("v", nn::Linear(kWidth, kWidth))), distil(register_module("distil", nn::Conv1d(nn::Conv1dOptions(kWidth, kWidth, 3).padding(1)))),
        head(register_module("head", nn::Linear(kWidth * 6, 3))) {}
  Tensor forward(const Tensor& series) {
    const Tensor x = embed(series.transpose(1, 2)).transpose(1, 2);
    const Tensor query = q(x), key = k(x), value = v(x);
    const Tensor scores = torch::bmm(query, key.transpose(1, 2)) / std::sqrt(8.0);
    const Tensor activity = std::get<0>(scores.max(-1)) - scores.mean(-1);
    const Tensor top = std::get<1>(activity.topk(4, 1)).unsqueeze(-1);
    const Tensor chosen = scores.gather(1, top.expand({-1, -1, scores.size(2)}));
    const Tensor context = value.mean(1, true).expand_as(value).clone();
    const Tensor y = context.scatter(1, top.expand({-1, -1, kWidth}), torch::bmm(torch::softmax(chosen, -1), value));
    const Tensor halved = torch::max_pool1d(torch::elu(distil((x + y).transpose(1, 2))), 3, 2, 1);
    return head(halved.flatten(1));
  }
  nn::Conv1d embed;
  nn::Linear q, k, v;
  nn::Conv1d distil;
  nn::Linear head;
};

/// DLinear: a moving average and what is left of it, a linear layer each. By a pool over a padded end, or by unfold.
template <bool kUnfolds>
struct DLinear : nn::Module {
  DLinear() : seasonal(register_module("seasonal", nn::Linear(12, 4))), trend(register_module("trend", nn::Linear(12, 4))) {}
  static Tensor average(const Tensor& x) {
    const Tensor padded = torch::cat({x.slice(1, 0, 1).repeat({1, 2, 1}), x, x.slice(1, -1).repeat({1, 2, 1})}, 1);
    if (kUnfolds) return padded.unfold(1, 5, 1).mean(-1);
    return torch::avg_pool1d(padded.permute({0, 2, 1}), 5, 1).permute({0, 2, 1});
  }
  Tensor forward(const Tensor& x) {
    const Tensor mean = average(x);
    return (seasonal((x - mean).permute({0, 2, 1})) + trend(mean.permute({0, 2, 1}))).permute({0, 2, 1});
  }
  nn::Linear seasonal, trend;
};

}  // namespace

std::vector<Row> audio_and_time_rows() {
  const Input series = real({kSamples, 12, 3});
  const Input labels = ids({kSamples}, 5);
  return {
      row<Conformer>("Conformer", {real({kSamples, 10, 8}), ids({kSamples, 5}, 7)}, likelihood, {.stages = 4}),
      row<Wav2Vec>("Wav2Vec", {real({kSamples, 40}), labels}, likelihood, {.stages = 4}),
      row<Spectrogram>("Spectrogram_stft", {real({kSamples, 32}), labels}, likelihood),
      row<WaveNet>("WaveNet", {real({kSamples, 12}), ids({kSamples, 12}, 6)}, likelihood),
      row<NBeats>("NBeats", {real({kSamples, 12}), real({kSamples, 4})}, squares, {.stages = 4}),
      row<PatchTst>("PatchTst", {series, real({kSamples, 4, 3})}, squares),
      row<InformerLike>("Informer_like", {series, real({kSamples, 3})}, squares),
      row<DLinear<false>>("DLinear_pool", {series, real({kSamples, 4, 3})}, squares),
      row<DLinear<true>>("DLinear_unfold", {series, real({kSamples, 4, 3})}, squares),
  };
}

}  // namespace tessera::battery
