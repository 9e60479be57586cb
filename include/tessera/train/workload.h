// SPDX-License-Identifier: Apache-2.0
// A model ready to be trained: module, forward, loss, and what its data look like.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tessera/mesh/mesh.h"
#include "tessera/module/plan.h"
#include "tessera/train/config.h"

namespace tessera::train {

/// What one sample is: a row of numbers, a square one-channel image, or a window of token ids.
enum class InputKind { kVector, kImage, kTokens };

/// How held-out quality is reported next to the loss.
enum class Metric { kAccuracy, kPerplexity };

/// The data that a model takes.
struct InputSpec {
  InputKind kind = InputKind::kVector;
  /// kVector: numbers per sample; kImage: side of the square; kTokens: tokens per sample.
  std::int64_t width = 0;
  /// Number of classes, or the vocabulary: targets are 0 .. classes - 1.
  std::int64_t classes = 0;
  friend bool operator==(const InputSpec&, const InputSpec&) = default;
};

/// A part of a model computes with a parameter that another part registers (a tied weight of one name).
struct HeldParameter {
  std::string part;
  std::string parameter;
};

/// Everything the training loop knows about a model. A value; copies share the module.
struct Workload {
  std::shared_ptr<torch::nn::Module> module;
  /// What pipeline stages must have beside what their parts register.
  std::vector<HeldParameter> held;
  /// Inputs of a batch -> logits [..., classes]. Floating inputs must have the parameters' dtype.
  std::function<torch::Tensor(const torch::Tensor&)> forward;
  /// (logits [..., classes], int64 targets [...]) -> scalar, the mean cross entropy in nats over all targets.
  std::function<torch::Tensor(const torch::Tensor&, const torch::Tensor&)> loss;
  InputSpec input;
  Metric metric = Metric::kAccuracy;
  /// What throughput counts: "samples" or "tokens"; JSON fields are `<unit>_per_s`.
  std::string unit;
  std::int64_t units_per_sample = 1;
};

/// Names that `model.name` may have.
[[nodiscard]] const std::vector<std::string>& model_names();

/// Builds the model on the CPU in float32 and fills its parameters: a pure function of `config` and `seed`.
/// Throws ConfigError if the name is unknown or the sizes do not fit together.
[[nodiscard]] Workload make_workload(const ModelConfig& config, std::uint64_t seed);

/// The same without memory: parameters have names and sizes, and no values.
[[nodiscard]] Workload make_workload_shape(const ModelConfig& config);

/// The same on `mesh`, where the plan puts its parameters, in `dtype`. No rank holds more than its shards and one whole
/// parameter at a time. `plan` is asked once, with the model without memory.
/// Order   collective; draws from the mesh's generator
[[nodiscard]] Workload build_workload(const ModelConfig& config, std::uint64_t seed, at::ScalarType dtype,
                                      const Mesh& mesh, const std::function<Plan(const Workload&)>& plan);

/// The source that `data.source = ""` stands for: "digits", or "text" for a model of tokens.
[[nodiscard]] std::string default_source(const InputSpec& input);

/// Mean cross entropy in nats. Shapes  logits [..., classes], int64 targets [...] -> scalar
[[nodiscard]] torch::Tensor mean_cross_entropy(const torch::Tensor& logits, const torch::Tensor& target);

/// Number of parameters, those shared by two layers once.
[[nodiscard]] std::int64_t count_parameters(const torch::nn::Module& module);

}  // namespace tessera::train
