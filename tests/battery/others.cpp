// SPDX-License-Identifier: Apache-2.0
// Recommenders, flows, operators on functions, loops to a fixed point.
#include "battery/battery.h"

namespace tessera::battery {
namespace {

namespace nn = torch::nn;

/// DeepFM: one table for all fields with offsets, second-order terms by sums of squares, a deep part.
struct DeepFm : nn::Module {
  DeepFm()
      : table(register_module("table", nn::Embedding(30, 6))), linear(register_module("linear", nn::Embedding(30, 1))),
        deep(register_module("deep", nn::Sequential(nn::Linear(24, 16), nn::BatchNorm1d(16), nn::ReLU(), nn::Linear(16, 1)))) {
    offsets = register_buffer("offsets", torch::tensor({0, 8, 16, 24}));
    bias = register_parameter("bias", torch::zeros(1));
  }
  Tensor forward(const Tensor& fields) {
    const Tensor rows = fields + offsets.unsqueeze(0);
    const Tensor x = table(rows);
    const Tensor pairs = 0.5 * (x.sum(1).pow(2) - x.pow(2).sum(1)).sum(1, true);
    return (linear(rows).sum(1) + bias + pairs + deep->forward(x.view({-1, 24}))).squeeze(1);
  }
  nn::Embedding table, linear;
  nn::Sequential deep;
  Tensor offsets, bias;
};

/// Two towers: the other pairs of the batch are the wrong answers.
struct TwoTowers : nn::Module {
  TwoTowers()
      : users(register_module("users", nn::Embedding(20, 8))), items(register_module("items", nn::EmbeddingBag(30, 8))),
        user(register_module("user", nn::Linear(8, 8))), item(register_module("item", nn::Linear(8, 8))) {
    temperature = register_parameter("temperature", torch::zeros({}));
  }
  Tensor forward(const Tensor& who, const Tensor& what) {
    namespace F = nn::functional;
    const Tensor a = F::normalize(user(users(who)), F::NormalizeFuncOptions().dim(-1));
    const Tensor b = F::normalize(item(items(what)), F::NormalizeFuncOptions().dim(-1));
    const Tensor scores = torch::matmul(a, b.t()) * temperature.exp();
    const Tensor own = torch::arange(who.size(0), torch::dtype(torch::kLong).device(who.device()));
    return (F::cross_entropy(scores, own) + F::cross_entropy(scores.t(), own)) / 2;
  }
  nn::Embedding users;
  nn::EmbeddingBag items;
  nn::Linear user, item;
  Tensor temperature;
};

/// A flow: affine coupling, a mixing matrix with its determinant, the density under a normal distribution.
struct Flow : nn::Module {
  Flow() : net(register_module("net", nn::Sequential(nn::Linear(4, 12), nn::Tanh(), nn::Linear(12, 8)))) {
    mix = register_parameter("mix", torch::eye(8));
  }
  Tensor forward(const Tensor& x) {
    const Tensor mixing = mix + torch::eye(8, mix.options().requires_grad(false));
    Tensor z = torch::matmul(x, mixing.t());
    Tensor log_det = std::get<1>(torch::slogdet(mixing)).expand({x.size(0)});
    for (int layer = 0; layer < 2; ++layer) {
      const auto halves = z.chunk(2, 1);
      const auto parts = net->forward(halves[0]).chunk(2, 1);
      const Tensor scale = torch::tanh(parts[0]);
      z = torch::cat({halves[1] * scale.exp() + parts[1], halves[0]}, 1);
      log_det = log_det + scale.sum(1);
    }
    return (0.5 * z.pow(2).sum(1) - log_det).mean();
  }
  nn::Sequential net;
  Tensor mix;
};

/// A differential equation by Euler's steps; time is a feature.
struct NeuralOde : nn::Module {
  NeuralOde() : in(register_module("in", nn::Linear(6, 8))), field(register_module("field", nn::Sequential(nn::Linear(9, 16), nn::Tanh(), nn::Linear(16, 8)))),
                head(register_module("head", nn::Linear(8, 3))) {}
  Tensor forward(const Tensor& x) {
    Tensor h = in(x);
    for (int i = 0; i < 5; ++i) h = h + 0.2 * field->forward(torch::cat({h, torch::full({h.size(0), 1}, 0.2 * i, x.options())}, 1));
    return head(h);
  }
  nn::Linear in;
  nn::Sequential field;
  nn::Linear head;
};

/// Fourier neural operator: the lowest modes are multiplied, by complex weights or by pairs of real ones.
template <bool kComplex>
struct FourierOperator : nn::Module {
  static constexpr std::int64_t kModes = 4;
  FourierOperator() : lift(register_module("lift", nn::Linear(1, 6))), skip(register_module("skip", nn::Conv1d(6, 6, 1))), head(register_module("head", nn::Linear(6, 1))) {
    weight = register_parameter("weight", kComplex ? torch::zeros({6, 6, kModes}, torch::kComplexDouble) : torch::zeros({6, 6, kModes, 2}));
  }
  Tensor forward(const Tensor& u) {
    const Tensor x = lift(u.unsqueeze(-1)).permute({0, 2, 1});
    const Tensor modes = torch::fft::rfft(x).slice(2, 0, kModes);
    const Tensor mixed = torch::einsum("bim,iom->bom", {modes, kComplex ? weight : torch::view_as_complex(weight)});
    const Tensor padded = torch::constant_pad_nd(mixed, {0, x.size(2) / 2 + 1 - kModes});
    const Tensor y = torch::gelu(torch::fft::irfft(padded, x.size(2)) + skip(x));
    return head(y.permute({0, 2, 1})).squeeze(-1);
  }
  nn::Linear lift;
  nn::Conv1d skip;
  nn::Linear head;
  Tensor weight;
};

/// A deep equilibrium: iterated without gradient until it hardly moves, then once with it.
struct Equilibrium : nn::Module {
  Equilibrium() : in(register_module("in", nn::Linear(6, 8))), cell(register_module("cell", nn::Linear(8, 8))), norm(register_module("norm", nn::LayerNorm(nn::LayerNormOptions({8})))),
                  head(register_module("head", nn::Linear(8, 3))) {}
  Tensor forward(const Tensor& x) {
    const Tensor injected = in(x);
    const auto once = [&](const Tensor& z) { return torch::tanh(cell(norm(z)) * 0.5 + injected); };
    Tensor z = torch::zeros_like(injected);
    {
      const torch::NoGradGuard no_grad;
      for (int i = 0; i < 20; ++i) {
        const Tensor next = once(z);
        const double moved = (next - z).norm().item<double>() / (1e-5 + next.norm().item<double>());
        z = next;
        if (moved < 1e-3) break;
      }
    }
    return head(once(z));
  }
  nn::Linear in, cell;
  nn::LayerNorm norm;
  nn::Linear head;
};

/// A pointer network: attention over the input is the output; what was pointed at is masked.
struct Pointer : nn::Module {
  Pointer()
      : encoder(register_module("encoder", nn::LSTM(nn::LSTMOptions(2, 8).batch_first(true)))), cell(register_module("cell", nn::LSTMCell(2, 8))),
        w1(register_module("w1", nn::Linear(nn::LinearOptions(8, 8).bias(false)))), w2(register_module("w2", nn::Linear(nn::LinearOptions(8, 8).bias(false)))),
        v(register_module("v", nn::Linear(nn::LinearOptions(8, 1).bias(false)))) {
    start = register_parameter("start", torch::zeros({1, 2}));
  }
  Tensor forward(const Tensor& points) {
    const auto [memory, states] = encoder(points);
    Tensor h = std::get<0>(states).squeeze(0), c = std::get<1>(states).squeeze(0);
    Tensor input = start.expand({points.size(0), 2});
    Tensor mask = torch::zeros({points.size(0), points.size(1)}, points.options().dtype(torch::kBool));
    Tensors outputs;
    for (int t = 0; t < 3; ++t) {
      std::tie(h, c) = cell(input, std::make_tuple(h, c));
      Tensor scores = v(torch::tanh(w1(memory) + w2(h).unsqueeze(1))).squeeze(-1);
      scores = scores.masked_fill(mask, -1e4);
      outputs.push_back(torch::log_softmax(scores, -1));
      const Tensor best = scores.argmax(-1);
      mask = mask.scatter(1, best.unsqueeze(1), true);
      input = points.gather(1, best.view({-1, 1, 1}).expand({-1, 1, 2})).squeeze(1);
    }
    return torch::stack(outputs, 1);
  }
  nn::LSTM encoder;
  nn::LSTMCell cell;
  nn::Linear w1, w2, v;
  Tensor start;
};

}  // namespace

std::vector<Row> other_rows() {
  return {
      row<DeepFm>("DeepFm", {ids({kSamples, 4}, 6), ids({kSamples}, 2)}, binary),
      row<TwoTowers>("TwoTowers", {ids({kSamples}, 20), ids({kSamples, 4}, 30)}, itself),
      row<Flow>("NormalisingFlow", {real({kSamples, 8})}, itself),
      row<NeuralOde>("NeuralOde", {real({kSamples, 6}), real({kSamples, 3})}, squares),
      row<FourierOperator<false>>("FourierOperator", {real({kSamples, 16}), real({kSamples, 16})}, squares),
      row<FourierOperator<true>>("FourierOperator_complex", {real({kSamples, 16}), real({kSamples, 16})}, squares),
      row<Equilibrium>("DeepEquilibrium", {real({kSamples, 6}), real({kSamples, 3})}, squares),
      row<Pointer>("PointerNetwork", {real({kSamples, 6, 2}), ids({kSamples, 3}, 6)}, likelihood),
  };
}

}  // namespace tessera::battery
