// SPDX-License-Identifier: Apache-2.0
// Measuring the parts of a model.
#include "tessera/train/part_costs.h"

#include <ATen/CPUGeneratorImpl.h>

#include <chrono>

#include "tessera/base/error.h"
#include "tessera/train/memory_meter.h"
#include "tessera/train/metrics.h"

namespace tessera::train {
namespace {

constexpr int kRepetitions = 3;

/// A tensor without a graph behind it.
at::Tensor cut_off(const at::Tensor& tensor) {
  return tensor.is_floating_point() ? tensor.detach().requires_grad_() : tensor.detach();
}

void wait_for(const c10::Device& device) {
  if (device.is_cuda()) torch::cuda::synchronize(device.index());
}

/// Leaves generators as they were.
class RandomNumbersKept {
 public:
  RandomNumbersKept() : generator_(at::detail::getDefaultCPUGenerator()), state_(generator_.get_state()) {}
  ~RandomNumbersKept() { generator_.set_state(state_); }
  RandomNumbersKept(const RandomNumbersKept&) = delete;
  RandomNumbersKept& operator=(const RandomNumbersKept&) = delete;

 private:
  at::Generator generator_;
  at::Tensor state_;
};

std::int64_t bytes_of(const torch::nn::Module& module) {
  std::int64_t bytes = 0;
  for (const at::Tensor& parameter : module.parameters()) bytes += static_cast<std::int64_t>(parameter.nbytes());
  return bytes;
}

/// Forward and backward of one part, once. Tensors die before the meter does, which counts them.
void run_part(torch::nn::AnyModule& part, const at::Tensor& given, PartCost& cost, std::vector<double>& seconds) {
  const MemoryMeter meter;
  wait_for(given.device());
  const auto start = std::chrono::steady_clock::now();
  const at::Tensor input = cut_off(given);
  const at::Tensor output = part.forward(input);
  cost.activation_bytes = meter.allocated_bytes();
  std::vector<at::Tensor> wanted;
  for (const at::Tensor& parameter : part.ptr()->parameters()) {
    if (parameter.requires_grad()) wanted.push_back(parameter);
  }
  if (input.requires_grad()) wanted.push_back(input);
  if (output.requires_grad()) {
    (void)torch::autograd::grad({output}, wanted, {at::ones_like(output)}, /*retain_graph=*/{}, /*create_graph=*/false,
                                /*allow_unused=*/true);
  }
  wait_for(given.device());
  seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
}

}  // namespace

std::vector<PartCost> measure_parts(const Workload& workload, const Batch& batch) {
  auto* sequence = dynamic_cast<torch::nn::SequentialImpl*>(workload.module.get());
  check<ConfigError>(sequence != nullptr,
                     "measure_parts: the model is no torch::nn::Sequential; balance by parameters");
  const RandomNumbersKept kept;
  const auto names = sequence->named_children().keys();
  std::vector<PartCost> costs;
  at::Tensor input = batch.input;
  for (torch::nn::AnyModule& part : *sequence) {
    PartCost cost{.path = names[costs.size()]};
    cost.parameter_bytes = bytes_of(*part.ptr());
    std::vector<double> seconds;
    run_part(part, input, cost, seconds);
    seconds.clear();  // the first one warms up
    for (int i = 0; i < kRepetitions; ++i) run_part(part, input, cost, seconds);
    cost.seconds = percentile(seconds, 50);
    costs.push_back(std::move(cost));
    const at::NoGradGuard no_grad;
    input = part.forward(input);
  }
  return costs;
}

void agree_on_costs(std::vector<PartCost>& costs, const Mesh& mesh) {
  if (mesh.size() == 1) return;
  at::Tensor numbers = at::empty({static_cast<std::int64_t>(costs.size()), 2}, at::kDouble);
  for (std::size_t i = 0; i < costs.size(); ++i) {
    const auto row = numbers[static_cast<std::int64_t>(i)];
    row[0] = costs[i].seconds;
    row[1] = static_cast<double>(costs[i].activation_bytes);
  }
  numbers = numbers.to(mesh.device());
  mesh.everyone().broadcast(numbers, 0);
  for (std::size_t i = 0; i < costs.size(); ++i) {
    const auto row = numbers[static_cast<std::int64_t>(i)];
    costs[i].seconds = row[0].item<double>();
    costs[i].activation_bytes = static_cast<std::int64_t>(row[1].item<double>());
  }
}

double weight_of(const PartCost& cost, const std::string& balance, const OptimizerConfig& optimizer) {
  if (balance == "time") return cost.seconds;
  const int state_values = optimizer.name != "sgd" ? 2 : optimizer.momentum != 0 ? 1 : 0;
  return static_cast<double>(cost.parameter_bytes) * (2 + state_values) + static_cast<double>(cost.activation_bytes);
}

}  // namespace tessera::train
