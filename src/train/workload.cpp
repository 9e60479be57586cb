// SPDX-License-Identifier: Apache-2.0
// The table of models, and what turns a row into a workload: initial parameters, forward, loss.
#include "tessera/train/workload.h"

#include <algorithm>
#include <cmath>
#include <unordered_set>

#include "tessera/base/error.h"
#include "tessera/base/text.h"
#include "tessera/module/build.h"
#include "train/models/common.h"
#include "train/names.h"

namespace tessera::train {
namespace {

struct ModelRow {
  std::string name;
  bool takes_tokens;
  ModelParts (*make)(const ModelConfig&);
};

const std::vector<ModelRow>& model_table() {
  static const std::vector<ModelRow> table = {
      {"mlp", false, make_mlp_parts},
      {"cnn", false, make_cnn_parts},
      {"resnet", false, make_resnet_parts},
      {"gpt", true, make_gpt_parts},
  };
  return table;
}

const ModelRow* find_model(std::string_view name) {
  const auto& table = model_table();
  const auto row = std::find_if(table.begin(), table.end(), [&](const auto& model) { return model.name == name; });
  return row == table.end() ? nullptr : &*row;
}

// Draws in the order of named_parameters() from one generator, always in float32 on the CPU, so that the numbers are
// those that the same recipe gives in Python.
void initialise(const ModelParts& parts, const ModelConfig& config, std::uint64_t seed) {
  const torch::NoGradGuard no_grad;
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  for (auto& item : parts.module->named_parameters()) {
    auto& parameter = item.value();
    if (parameter.dim() < 2) {
      parameter.fill_(item.key().ends_with(".weight") ? 1.0 : 0.0);
    } else {
      const auto values = torch::randn(parameter.sizes(), generator, torch::TensorOptions(torch::kFloat32));
      parameter.copy_(values * parts.initial_std(item.key(), parameter, config));
    }
  }
}

ModelParts make_parts(const ModelConfig& config) {
  const auto* row = find_model(config.name);
  if (row == nullptr) {
    throw ConfigError(fmt::format("model.name = \"{}\"; allowed: {}; did you mean \"{}\"?", config.name,
                                  fmt::join(model_names(), ", "), base::nearest_word(config.name, model_names())));
  }
  return row->make(config);
}

Workload workload_of(const ModelParts& parts) {
  auto sequence = parts.module;
  return {.module = sequence.ptr(),
          .held = parts.held,
          .forward = [sequence](const torch::Tensor& input) mutable { return sequence->forward(input); },
          .loss = mean_cross_entropy,
          .input = parts.input,
          .metric = parts.metric,
          .unit = parts.unit,
          .units_per_sample = parts.units_per_sample};
}

}  // namespace

const std::vector<std::string>& model_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all;
    for (const auto& row : model_table()) all.push_back(row.name);
    return all;
  }();
  return names;
}

bool model_takes_tokens(std::string_view name) {
  const auto* row = find_model(name);
  return row != nullptr && row->takes_tokens;
}

std::string default_source(const InputSpec& input) { return input.kind == InputKind::kTokens ? "text" : "digits"; }

double he_std(const std::string& /*name*/, const torch::Tensor& parameter, const ModelConfig& /*config*/) {
  const auto fan_in = parameter.numel() / parameter.size(0);
  return std::sqrt(2.0 / static_cast<double>(fan_in));
}

Workload make_workload(const ModelConfig& config, std::uint64_t seed) {
  const ModelParts parts = make_parts(config);
  initialise(parts, config, seed);
  return workload_of(parts);
}

Workload make_workload_shape(const ModelConfig& config) {
  const module::Recording without_memory;
  return workload_of(make_parts(config));
}

Workload build_workload(const ModelConfig& config, std::uint64_t seed, at::ScalarType dtype, const Mesh& mesh,
                        const std::function<Plan(const Workload&)>& plan) {
  ModelParts parts;
  const auto make = [&] {
    parts = make_parts(config);
    parts.module->to(dtype);
    return parts.module.ptr();
  };
  (void)build(mesh, [&](const torch::nn::Module&) { return plan(workload_of(parts)); }, make);
  initialise(parts, config, seed);
  return workload_of(parts);
}

torch::Tensor mean_cross_entropy(const torch::Tensor& logits, const torch::Tensor& target) {
  return torch::cross_entropy_loss(logits.flatten(0, -2), target.flatten());
}

std::int64_t count_parameters(const torch::nn::Module& module) {
  std::unordered_set<const void*> seen;
  std::int64_t total = 0;
  for (const auto& parameter : module.parameters()) {
    if (seen.insert(parameter.unsafeGetTensorImpl()).second) total += parameter.numel();
  }
  return total;
}

}  // namespace tessera::train
