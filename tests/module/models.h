// SPDX-License-Identifier: Apache-2.0
// A small module with deterministic weights and data, as users would write it, for the tests of the module floor.
#pragma once

#include <torch/torch.h>

#include <string>
#include <vector>

#include "support/ranks.h"
#include "tessera/module/distribute.h"
#include "tessera/module/plan.h"
#include "tessera/pipeline/step.h"

namespace tessera::test {

/// Odd sizes, so that shards are uneven, and a bias that every rank of a larger mesh may hold nothing of.
struct NetImpl : torch::nn::Module {
  NetImpl()
      : first(register_module("first", torch::nn::Linear(10, 14))),
        second(register_module("second", torch::nn::Linear(14, 5))) {
    to(torch::kDouble);
  }
  at::Tensor forward(const at::Tensor& x) { return second(torch::tanh(first(x))); }
  torch::nn::Linear first;
  torch::nn::Linear second;
};
TORCH_MODULE(Net);

inline void fill(torch::nn::Module& module) {
  const at::NoGradGuard no_grad;
  double phase = 0.2;
  for (at::Tensor& parameter : module.parameters()) {
    parameter.copy_((torch::arange(parameter.numel(), torch::kDouble) * 0.41 + phase).sin().view(parameter.sizes()) /
                    2);
    phase += 0.6;
  }
}

[[nodiscard]] inline Net make_net() {
  Net net;
  fill(*net);
  return net;
}

[[nodiscard]] inline at::Tensor inputs(int seed = 0) {
  return (torch::arange(8 * 10, torch::kDouble) * 0.13 + seed).cos().view({8, 10});
}
[[nodiscard]] inline at::Tensor targets() { return (torch::arange(8 * 5, torch::kDouble) * 0.29).sin().view({8, 5}); }

[[nodiscard]] inline at::Tensor squared_error(const at::Tensor& output, const at::Tensor& target) {
  return torch::mse_loss(output, target);
}

/// A mesh and how the parameters of Net lie on it.
struct Layout {
  std::string name;
  std::string axes;
  Plan plan;
};

/// Replicated, Shard(0), Shard(1) and both at once.
[[nodiscard]] inline std::vector<Layout> layouts() {
  const auto tensor_parallel = [] {
    return Plan().add("first.*", {{"tp", Shard(0)}}).add("second.weight", {{"tp", Shard(1)}});
  };
  return {{"replicated", "dp=2", Plan()},
          {"tensor parallel", "tp=2", tensor_parallel()},
          {"sharded over the batch's axis", "dp_shard=2", Plan().add("*", {{"dp_shard", Shard(0)}})},
          {"data and tensor parallel", "dp=2,tp=2", tensor_parallel()}};
}

/// Runs `body` on every rank of every layout with a distributed Net.
template <class Body>
void on_layouts(const Body& body) {
  for (const Layout& layout : layouts()) {
    SCOPED_TRACE(layout.name);
    on_mesh(layout.axes, [&](const Mesh& mesh) {
      Net net = make_net();
      distribute(*net, mesh, layout.plan);
      body(mesh, net);
    });
  }
}

inline void backward(Net& net, const at::Tensor& input, const at::Tensor& target) {
  (void)step(*net, input, target, squared_error);
}
inline void backward(const Mesh& mesh, Net& net, int seed = 0) {
  backward(net, shard_batch(mesh, inputs(seed)), shard_batch(mesh, targets()));
}

/// Updates of a Net that tests compare, and how far rounding alone may take them apart.
/// Adam divides by the root of tiny second moments, which lifts rounding of 1e-16 by about three digits.
constexpr int kSteps = 5;
constexpr double kRounding = 1e-12;

/// Parameters of a Net after kSteps on one device.
template <class Optimizer, class Options>
[[nodiscard]] std::vector<at::Tensor> train_alone(const Options& options) {
  Net net = make_net();
  Optimizer optimizer(net->parameters(), options);
  for (int index = 0; index < kSteps; ++index) {
    optimizer.zero_grad();
    backward(net, inputs(index), targets());
    optimizer.step();
  }
  return net->parameters();
}

/// Largest absolute difference of two tensors, either of which may be a mesh tensor.
[[nodiscard]] inline double difference(const at::Tensor& a, const at::Tensor& b) {
  return (full(a).detach() - full(b).detach()).abs().max().item<double>();
}

}  // namespace tessera::test
