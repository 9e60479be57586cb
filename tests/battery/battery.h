// SPDX-License-Identifier: Apache-2.0
// Models as people write them: small ones after well-known architectures, one row of a table each.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tessera/module/plan.h"

namespace tessera::battery {

using at::Tensor;
using Tensors = std::vector<Tensor>;

/// One tensor of a batch, drawn by a generator of its own; samples are along dim 0.
using Input = std::function<Tensor(at::Generator& generator)>;
[[nodiscard]] Input real(std::vector<std::int64_t> sizes);
[[nodiscard]] Input ids(std::vector<std::int64_t> sizes, std::int64_t count);
/// The same numbers in every step.
[[nodiscard]] Input fixed(Tensor value);

/// Samples of a batch: neither two nor three ranks share them evenly.
constexpr std::int64_t kSamples = 5;

/// A module and the loss of a batch.
struct Network {
  std::shared_ptr<torch::nn::Module> module;
  std::function<Tensor(const Tensors& batch)> loss;
};

/// What only some rows say.
struct Traits {
  /// A ready plan that fits the names of its parameters.
  std::function<Plan(const std::vector<std::string>& parameters)> plan = nullptr;
  /// Pipeline stages that its children make at most, in their order: 0, 2 or 4.
  int stages = 0;
  /// Operators that run gathered and replicated on some mesh, and why; exactly these.
  std::map<std::string, std::string> fallbacks = {};
};

struct Row {
  std::string name;
  std::vector<Input> inputs;
  std::function<Network()> make;
  Traits traits;
};

/// The tables, one per kind of model.
[[nodiscard]] std::vector<Row> decoder_rows();
[[nodiscard]] std::vector<Row> encoder_rows();
[[nodiscard]] std::vector<Row> recurrent_rows();
[[nodiscard]] std::vector<Row> convolution_rows();
[[nodiscard]] std::vector<Row> vision_rows();
[[nodiscard]] std::vector<Row> image_rows();
[[nodiscard]] std::vector<Row> audio_and_time_rows();
[[nodiscard]] std::vector<Row> other_rows();

/// The output for all inputs but the last one, which is the target.
template <class Module>
[[nodiscard]] Tensor output_of(Module& module, const Tensors& x) {
  if constexpr (requires { module.forward(x[0]); }) {
    return module.forward(x[0]);
  } else if constexpr (requires { module.forward(x[0], x[1]); }) {
    return module.forward(x[0], x[1]);
  } else {
    return module.forward(x[0], x[1], x[2]);
  }
}

/// A row of `Module`, whose loss is `criterion(output, target)`.
template <class Module, class Criterion>
[[nodiscard]] Row row(std::string name, std::vector<Input> inputs, Criterion criterion, Traits traits = {}) {
  const auto make = [criterion]() -> Network {
    const auto module = std::make_shared<Module>();
    return {module, [module, criterion](const Tensors& batch) { return criterion(output_of(*module, batch), batch.back()); }};
  };
  return {std::move(name), std::move(inputs), make, std::move(traits)};
}

/// Criteria. Logits have classes along the last dim.
[[nodiscard]] inline Tensor likelihood(const Tensor& logits, const Tensor& target) {
  return torch::nn::functional::cross_entropy(logits.flatten(0, -2), target.flatten());
}
[[nodiscard]] inline Tensor squares(const Tensor& output, const Tensor& target) { return torch::mse_loss(output, target); }
[[nodiscard]] inline Tensor binary(const Tensor& logits, const Tensor& target) {
  return torch::binary_cross_entropy_with_logits(logits, target.to(logits.dtype()));
}
/// What forward gives is the loss already.
[[nodiscard]] inline Tensor itself(const Tensor& loss, const Tensor& /*target*/) { return loss; }

}  // namespace tessera::battery
