// SPDX-License-Identifier: Apache-2.0
// Training a row of the battery.
#include "battery/trained.h"

#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "tessera/module/distribute.h"
#include "tessera/tensor/mesh_tensor.h"

namespace tessera::battery {
namespace {

constexpr int kSteps = 2;
constexpr double kRate = 0.1;
constexpr double kTolerance = 1e-12;

at::Generator generator_of(std::uint64_t seed) { return at::make_generator<at::CPUGeneratorImpl>(seed); }

/// Weights of usual sizes, the same on every rank: outputs of a layer are about as large as its inputs.
void fill(torch::nn::Module& module) {
  const at::NoGradGuard no_grad;
  at::Generator generator = generator_of(7);
  for (auto& parameter : module.named_parameters()) {
    Tensor& value = parameter.value();
    const Tensor noise = torch::randn(value.sizes(), generator, value.options());
    if (value.dim() >= 2) {
      value.copy_(noise * 0.7 / std::sqrt(static_cast<double>(value.numel() / value.size(0))));
    } else {
      value.copy_(noise * 0.2 + (parameter.key().ends_with("weight") ? 1.0 : 0.0));
    }
  }
}

Tensors batch_of(const Row& row, int step) {
  at::Generator generator = generator_of(static_cast<std::uint64_t>(100 + step));
  Tensors batch;
  for (const Input& input : row.inputs) batch.push_back(input(generator));
  return batch;
}

Tensor kept(const Tensor& tensor) { return full(tensor).detach().cpu().clone(); }

Trained train(const Row& row, Network& network, const StepOptions& options) {
  Trained result;
  torch::optim::SGD optimizer(network.module->parameters(), torch::optim::SGDOptions(kRate));
  for (int index = 0; index < kSteps; ++index) {
    const std::string suffix = " in step " + std::to_string(index);
    optimizer.zero_grad();
    result.losses["loss" + suffix] = kept(step(*network.module, batch_of(row, index), network.loss, options));
    for (const auto& parameter : network.module->named_parameters()) {
      const Tensor& gradient = parameter.value().grad();
      if (gradient.defined()) result.gradients["gradient of " + parameter.key() + suffix] = kept(gradient);
    }
    optimizer.step();
  }
  for (const auto& parameter : network.module->named_parameters()) result.values[parameter.key()] = kept(parameter.value());
  for (const auto& buffer : network.module->named_buffers()) result.values[buffer.key()] = kept(buffer.value());
  return result;
}

double largest(const Tensor& tensor) { return tensor.numel() == 0 ? 0.0 : tensor.abs().max().item<double>(); }

/// The larger deviation stands in `worst`.
void compare(const std::map<std::string, Tensor>& expected, const std::map<std::string, Tensor>& found, double& worst,
             std::string& name_of_worst) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  double scale = 0;
  for (const auto& [name, tensor] : expected) scale = std::max(scale, largest(tensor));
  const auto merge = [&](double apart, const std::string& name) {
    if (std::isnan(apart)) apart = kInfinity;
    if (apart <= worst) return;
    worst = apart;
    name_of_worst = name;
  };
  for (const auto& [name, tensor] : expected) {
    const auto place = found.find(name);
    const bool fits = place != found.end() && place->second.sizes() == tensor.sizes();
    merge(fits ? largest(place->second - tensor) / std::max(largest(tensor), scale * 1e-2) : kInfinity, name);
  }
  for (const auto& [name, tensor] : found) {
    if (expected.count(name) == 0) merge(kInfinity, name);
  }
}

}  // namespace

Input real(std::vector<std::int64_t> sizes) {
  return [sizes](at::Generator& generator) { return torch::randn(sizes, generator, torch::kDouble); };
}

Input ids(std::vector<std::int64_t> sizes, std::int64_t count) {
  return [sizes, count](at::Generator& generator) { return torch::randint(count, sizes, generator, torch::kLong); };
}

Input fixed(Tensor value) {
  return [value](at::Generator&) { return value; };
}

Trained train_alone(const Row& row, const StepOptions& options) {
  Network network = row.make();
  fill(*network.module);
  return train(row, network, options);
}

Trained train_on(const Row& row, const Mesh& mesh, const PlanOf& plan, const StepOptions& options) {
  Network network = row.make();
  fill(*network.module);
  distribute(*network.module, mesh, plan(*network.module));
  return train(row, network, options);
}

std::string difference(const Trained& expected, const Trained& found) {
  double worst = 0;
  std::string name;
  compare(expected.losses, found.losses, worst, name);
  compare(expected.gradients, found.gradients, worst, name);
  compare(expected.values, found.values, worst, name);
  return worst <= kTolerance ? "" : fmt::format("{} is {:.1e} off", name, worst);
}

}  // namespace tessera::battery
