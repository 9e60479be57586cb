// SPDX-License-Identifier: Apache-2.0
// A small program with everything that a checkpoint holds, on one device or on a mesh.
#pragma once

#include <torch/torch.h>

#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "module/models.h"
#include "support/ranks.h"
#include "support/temporary_folder.h"
#include "tessera/checkpoint/checkpoint.h"
#include "tessera/module/fused_optimizers.h"
#include "tessera/tensor/random.h"

namespace tessera::test {

/// Odd sizes, a buffer that is counted, a weight that two layers share, and one in 16 bits.
struct ModelImpl : torch::nn::Module {
  ModelImpl()
      : first(register_module("first", torch::nn::Linear(10, 14))),
        norm(register_module("norm", torch::nn::BatchNorm1d(14))),
        second(register_module("second", torch::nn::Linear(14, 5))) {
    to(torch::kDouble);
    tied = register_parameter("tied", torch::ones({3, 7}, torch::kDouble));
    register_parameter("again", tied);
    half = register_parameter("half", torch::ones({9}, torch::kBFloat16));
  }
  at::Tensor forward(const at::Tensor& x) {
    return second(torch::tanh(norm(first(x)))) + tied.sum() + half.to(torch::kDouble).sum();
  }
  torch::nn::Linear first;
  torch::nn::BatchNorm1d norm;
  torch::nn::Linear second;
  at::Tensor tied;
  at::Tensor half;
};
TORCH_MODULE(Model);

/// A mesh, "" for plain tensors, and a plan.
struct Place {
  std::string axes;
  std::string plan;  ///< "", "tp", "rows", or what ZeRO shards: "1", "2", "3"
};

[[nodiscard]] inline Plan plan_of(const Place& place) {
  Plan plan;
  if (place.plan == "tp") plan.add("first.*", {{"tp", Shard(0)}}).add("second.weight", {{"tp", Shard(1)}});
  if (place.plan == "rows") plan.add("*", {{"dp_shard", Shard(0)}});
  if (place.axes.find("dp_shard") != std::string::npos && place.plan != "rows") {
    plan.zero(place.plan == "tp" ? 3 : std::stoi(place.plan));
  }
  if (place.axes.find("pp") != std::string::npos) plan.stages({{"first", "norm", "half"}, {"second", "tied", "again"}});
  return plan;
}

/// The program: it draws its initial values from `seed`.
class Program {
 public:
  Program(const std::optional<Mesh>& mesh, const Place& place, int seed = 0) {
    const at::NoGradGuard no_grad;
    auto generator = at::make_generator<at::CPUGeneratorImpl>(static_cast<std::uint64_t>(seed));
    for (at::Tensor& parameter : model->parameters()) {
      parameter.copy_(torch::randn(parameter.sizes(), generator, torch::kDouble));
    }
    if (mesh) distribute(*model, *mesh, plan_of(place));
    optimizer = std::make_unique<FusedAdamW>(model->parameters(), torch::optim::AdamWOptions(1e-2));
    ema.emplace(model->parameters(), 0.9);
    state.add("model", *model).add("optimizer", *optimizer).add("ema", *ema).add("scaler", scaler);
    state.add("step", step).add("rate", rate).add("note", note).add("done", done);
  }

  /// A step on made-up gradients: values that differ everywhere, without a forward.
  void update() {
    for (at::Tensor& parameter : model->parameters()) {
      parameter.mutable_grad() = torch::sin(parameter.detach() * 3 + static_cast<double>(step));
    }
    optimizer->step();
    ema->update();
    model->norm->running_mean.add_(0.1);
    ++step;
    rate /= 3;
    note += "step ";
  }

  Model model;
  std::unique_ptr<torch::optim::Optimizer> optimizer;
  std::optional<Ema> ema;
  GradScaler scaler;
  std::int64_t step = 0;
  double rate = 1;
  std::string note;
  bool done = false;
  State state;
};

/// Every tensor that the optimizer, the average and the module have, whole. Collective.
[[nodiscard]] inline std::map<std::string, at::Tensor> contents(Program& program) {
  std::map<std::string, at::Tensor> all;
  const auto keep = [&](const std::string& name, const at::Tensor& tensor) {
    all[name] = full(tensor.detach()).clone().contiguous();
  };
  for (const auto& item : program.model->named_parameters()) {
    keep(item.key(), item.value());
    const auto found = program.optimizer->state().find(item.value().unsafeGetTensorImpl());
    if (found == program.optimizer->state().end()) continue;
    auto& state = static_cast<torch::optim::AdamWParamState&>(*found->second);
    keep(item.key() + ".exp_avg", state.exp_avg());
    keep(item.key() + ".exp_avg_sq", state.exp_avg_sq());
    all[item.key() + ".step"] = torch::tensor(state.step());
  }
  for (const auto& item : program.model->named_buffers()) keep(item.key(), item.value());
  for (std::size_t i = 0; i < program.ema->averages().size(); ++i) {
    keep("average" + std::to_string(i), program.ema->averages()[i]);
  }
  all["step"] = torch::tensor(program.step);
  all["rate"] = torch::tensor(program.rate, torch::kDouble);
  all["note"] = torch::tensor(static_cast<std::int64_t>(program.note.size()));
  return all;
}

/// The names whose bits differ; empty: none.
[[nodiscard]] inline std::string different(const std::map<std::string, at::Tensor>& a,
                                           const std::map<std::string, at::Tensor>& b) {
  std::string names = a.size() == b.size() ? "" : "(another number of tensors) ";
  for (const auto& [name, tensor] : a) {
    const auto other = b.find(name);
    const bool same = other != b.end() && tensor.sizes() == other->second.sizes() &&
                      tensor.scalar_type() == other->second.scalar_type() &&
                      std::memcmp(tensor.const_data_ptr(), other->second.const_data_ptr(), tensor.nbytes()) == 0;
    if (!same) names += name + " ";
  }
  return names;
}

/// Runs `body(mesh or nothing)` on every rank of the place.
template <class Body>
void on_place(const Place& place, const Body& body) {
  if (place.axes.empty()) {
    body(std::optional<Mesh>());
  } else {
    on_mesh(place.axes, [&](const Mesh& mesh) { body(std::optional<Mesh>(mesh)); });
  }
}

}  // namespace tessera::test
