// SPDX-License-Identifier: Apache-2.0
// Complex parameters, as Fourier layers have: training, clipping, scaling and fused optimizers, against one device.
#include <gtest/gtest.h>

#include <limits>

#include "module/models.h"
#include "tessera/base/error.h"
#include "tessera/module/check_finite.h"
#include "tessera/module/clip.h"
#include "tessera/module/fused_optimizers.h"
#include "tessera/module/grad_scaler.h"

namespace tessera {
namespace {

using at::Tensor;

/// Three of its tensors are complex: a weight, its lazily conjugated use, and a bias that every row adds to.
struct FourierImpl : torch::nn::Module {
  explicit FourierImpl(torch::Dtype dtype = torch::kComplexDouble)
      : weight(register_parameter("weight", torch::zeros({6, 6}, dtype))),
        turn(register_parameter("turn", torch::zeros({6}, dtype))),
        bias(register_parameter("bias", torch::zeros({6}, dtype))),
        out(register_module("out", torch::nn::Linear(10, 5))) {
    out->to(c10::toRealValueType(dtype));
    const at::NoGradGuard no_grad;
    double phase = 0.3;
    for (Tensor& parameter : parameters()) {
      const auto wave = [&](double at) {
        return (torch::arange(parameter.numel(), torch::kDouble) * 0.41 + at).sin().view(parameter.sizes()) / 2;
      };
      parameter.copy_(parameter.is_complex() ? torch::complex(wave(phase), wave(phase + 2)) : wave(phase));
      phase += 0.6;
    }
  }
  Tensor forward(const Tensor& x) {
    const Tensor spectrum = torch::fft_rfft(x, std::nullopt, 1);
    return out(torch::fft_irfft(spectrum.matmul(weight.t()) * turn.conj() + bias, 10, 1));
  }
  Tensor weight, turn, bias;
  torch::nn::Linear out;
};
TORCH_MODULE(Fourier);

std::vector<test::Layout> fourier_layouts() {
  const auto columns = [] { return Plan().add("weight", {{"tp", Shard(0)}}); };
  return {{"replicated", "dp=2", Plan()},
          {"columns", "tp=2", columns()},
          {"rows", "tp=2", Plan().add("weight", {{"tp", Shard(1)}})},
          {"bias", "tp=3", Plan().add("bias", {{"tp", Shard(0)}}).add("turn", {{"tp", Shard(0)}})},
          {"ZeRO 1", "dp_shard=2", Plan().zero(1)},
          {"ZeRO 2", "dp_shard=3", Plan().zero(2)},
          {"ZeRO 3", "dp_replicate=2,dp_shard=2", Plan().zero(3)},
          {"two axes", "dp=2,tp=2", columns()},
          {"stages", "pp=2,dp=2", Plan().stages({{"weight", "turn", "bias"}, {"out"}})}};
}

template <class Body>
void on_fourier_layouts(const Body& body) {
  for (const test::Layout& layout : fourier_layouts()) {
    SCOPED_TRACE(layout.name);
    test::on_mesh(layout.axes, [&](const Mesh& mesh) {
      Fourier net;
      distribute(*net, mesh, layout.plan);
      body(mesh, *net);
    });
  }
}

void fourier_backward(FourierImpl& net, int index) {
  (void)step(net, test::inputs(index), test::targets(), test::squared_error);
}

template <class Optimizer, class Options>
void train_fourier(FourierImpl& net, const Options& options) {
  Optimizer optimizer(net.parameters(), options);
  for (int index = 0; index < test::kSteps; ++index) {
    optimizer.zero_grad();
    fourier_backward(net, index);
    optimizer.step();
  }
}

template <class Optimizer, class Reference = Optimizer, class Options>
void expect_trains_as_alone(const Options& options) {
  Fourier alone;
  train_fourier<Reference>(*alone, options);
  on_fourier_layouts([&](const Mesh&, FourierImpl& net) {
    train_fourier<Optimizer>(net, options);
    for (std::size_t i = 0; i < alone->parameters().size(); ++i) {
      EXPECT_LE(test::difference(net.parameters()[i], alone->parameters()[i]), test::kRounding) << i;
    }
  });
}

TEST(ComplexParameters, TrainAsOnOneDevice) {
  expect_trains_as_alone<torch::optim::SGD>(torch::optim::SGDOptions(0.1));
  expect_trains_as_alone<torch::optim::SGD>(torch::optim::SGDOptions(0.1).momentum(0.9).weight_decay(0.01));
}

TEST(ComplexParameters, FusedSgdMatchesTorch) {
  expect_trains_as_alone<FusedSgd, torch::optim::SGD>(torch::optim::SGDOptions(0.1).momentum(0.9).nesterov(true));
}

TEST(ComplexParameters, FusedAdamWUpdatesPairsOfRealNumbers) {
  const torch::optim::AdamWOptions options = torch::optim::AdamWOptions(1e-2).amsgrad(true);
  expect_trains_as_alone<FusedAdamW>(options);
  Tensor complex = torch::complex(torch::ones({3}), torch::arange(3).to(torch::kFloat)).requires_grad_();
  Tensor pairs = torch::view_as_real(complex.detach()).clone().requires_grad_();
  FusedAdamW of_complex({complex}, options);
  torch::optim::AdamW of_pairs({pairs}, options);
  for (int index = 0; index < 3; ++index) {
    complex.mutable_grad() = torch::complex(torch::full({3}, 0.5F), torch::arange(3).to(torch::kFloat)).conj();
    pairs.mutable_grad() = torch::view_as_real(complex.grad().resolve_conj()).clone();
    of_complex.step();
    of_pairs.step();
  }
  EXPECT_LE(test::difference(torch::view_as_real(complex.detach()), pairs), 1e-7);
}

TEST(ComplexParameters, AreClippedAsOnOneDevice) {
  for (const double norm_type : {2.0, 1.0, std::numeric_limits<double>::infinity()}) {
    Fourier alone;
    fourier_backward(*alone, 0);
    const double norm = torch::nn::utils::clip_grad_norm_(alone->parameters(), 0.01, norm_type);
    on_fourier_layouts([&](const Mesh&, FourierImpl& net) {
      fourier_backward(net, 0);
      EXPECT_NEAR(clip_grad_norm_(net.parameters(), 0.01, norm_type), norm, 1e-14 + 1e-14 * norm);
      for (std::size_t i = 0; i < alone->parameters().size(); ++i) {
        EXPECT_LE(test::difference(net.parameters()[i].grad(), alone->parameters()[i].grad()), 1e-15) << i;
      }
    });
  }
}

TEST(ComplexParameters, AreUnscaledAndCheckedForNaN) {
  Fourier alone(torch::kComplexFloat);
  const auto mean = [](const Tensor& output, const Tensor& target) {
    return torch::mse_loss(output, target.to(torch::kFloat));
  };
  (void)step(*alone, test::inputs().to(torch::kFloat), test::targets(), mean);
  test::on_mesh("dp_shard=2", [&](const Mesh& mesh) {
    Fourier net(torch::kComplexFloat);
    distribute(*net, mesh, Plan().zero(2));
    torch::optim::SGD optimizer(net->parameters(), torch::optim::SGDOptions(0.1));
    GradScaler scaler({.init_scale = 1024});
    (void)step(*net, test::inputs().to(torch::kFloat), test::targets(),
               [&](const Tensor& output, const Tensor& target) { return scaler.scale(mean(output, target)); });
    scaler.unscale_(optimizer);
    EXPECT_LE(test::difference(net->turn.grad(), alone->turn.grad()), 1e-6);
    EXPECT_TRUE(scaler.step(optimizer));
    scaler.update();
    check_finite(*net);
    net->bias.mutable_grad().fill_(c10::complex<double>(0, std::numeric_limits<double>::quiet_NaN()));
    EXPECT_THROW(check_finite(*net), Error);
    EXPECT_FALSE(scaler.step(optimizer));
  });
}

}  // namespace
}  // namespace tessera
