// SPDX-License-Identifier: Apache-2.0
// One fused operator call per group, dtype and device.
#include "tessera/module/fused_optimizers.h"

#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/_fused_sgd.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <unordered_set>

#include "module/gradient_shards.h"
#include "module/shard_update.h"
#include "tessera/tensor/mesh_tensor.h"

namespace tessera {
namespace {

using torch::optim::AdamWOptions;
using torch::optim::AdamWParamState;
using torch::optim::SGDOptions;
using torch::optim::SGDParamState;
using Tensors = std::vector<at::Tensor>;

/// What one call takes: tensors of one dtype on one device, element i of each list belonging together.
struct AdamBatch {
  Tensors values, gradients, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps;
  std::int64_t last_step = 0;
};
struct SgdBatch {
  bool first_step = false;
  Tensors values, gradients, buffers;
};

template <class Batch>
bool takes(const Batch& batch, const at::Tensor& value) {
  const at::Tensor& sample = batch.values.front();
  return sample.scalar_type() == value.scalar_type() && sample.device() == value.device();
}

/// Parameters that lie differently from their state come home together.
void finish(std::vector<module::ShardUpdate> updates) {
  module::CoalescedGather gathers;
  for (module::ShardUpdate& update : updates) update.finish(gathers);
  gathers.flush();
}

/// Kernels take real numbers.
at::Tensor write_numbers(module::ShardUpdate& update, const at::Tensor& tensor) {
  return module::real_numbers(update.write(tensor));
}

at::Tensor zeros_for(const at::Tensor& parameter) { return at::zeros_like(parameter, at::MemoryFormat::Preserve); }

/// State where zeros_for() would be. What torch::load leaves is plain, and the same on every rank.
at::Tensor placed_for(const at::Tensor& parameter, const at::Tensor& state) {
  if (!state.defined()) return zeros_for(parameter);
  if (!is_mesh_tensor(parameter) || is_mesh_tensor(state)) return state;
  const at::TensorOptions dtype = at::TensorOptions().dtype(state.scalar_type());
  return at::zeros_like(parameter, dtype, at::MemoryFormat::Preserve).copy_(state.to(mesh_of(parameter).device()));
}

/// Parameters of one group on their way into as few calls as possible.
class AdamStep {
 public:
  AdamStep(torch::optim::AdamW& optimizer, const AdamWOptions& options) : optimizer_(optimizer), options_(options) {}

  void add(const at::Tensor& parameter) {
    AdamWParamState& state = state_of(parameter);
    state.step(state.step() + 1);
    module::ShardUpdate& update = updates_.emplace_back(state.exp_avg());
    const at::Tensor value = write_numbers(update, parameter);
    const at::Tensor gradient = module::real_numbers(update.read(parameter.grad()));
    if (value.is_meta()) return;  // of another pipeline stage
    AdamBatch& batch = batch_for(value);
    add_step(batch, state.step(), value);
    batch.values.push_back(value);
    batch.gradients.push_back(gradient);
    batch.exp_avgs.push_back(write_numbers(update, state.exp_avg()));
    batch.exp_avg_sqs.push_back(write_numbers(update, state.exp_avg_sq()));
    if (options_.amsgrad()) batch.max_exp_avg_sqs.push_back(write_numbers(update, state.max_exp_avg_sq()));
  }

  void run() {
    const auto [beta1, beta2] = options_.betas();
    for (AdamBatch& batch : std::exchange(batches_, {})) {
      at::_fused_adamw_(batch.values, batch.gradients, batch.exp_avgs, batch.exp_avg_sqs, batch.max_exp_avg_sqs,
                        batch.steps, options_.lr(), beta1, beta2, options_.weight_decay(), options_.eps(),
                        options_.amsgrad(), /*maximize=*/false);
    }
    finish(std::exchange(updates_, {}));
  }

 private:
  AdamWParamState& state_of(const at::Tensor& parameter) {
    auto& slot = optimizer_.state()[parameter.unsafeGetTensorImpl()];
    if (slot == nullptr) slot = std::make_unique<AdamWParamState>();
    auto& state = static_cast<AdamWParamState&>(*slot);
    state.exp_avg(placed_for(parameter, state.exp_avg()));
    state.exp_avg_sq(placed_for(parameter, state.exp_avg_sq()));
    if (options_.amsgrad()) state.max_exp_avg_sq(placed_for(parameter, state.max_exp_avg_sq()));
    return state;
  }

  AdamBatch& batch_for(const at::Tensor& value) {
    const auto fits = [&](const AdamBatch& batch) { return takes(batch, value); };
    const auto found = std::find_if(batches_.begin(), batches_.end(), fits);
    return found == batches_.end() ? batches_.emplace_back() : *found;
  }

  /// The operator takes counts as tensors; parameters of the same age share one.
  static void add_step(AdamBatch& batch, std::int64_t step, const at::Tensor& value) {
    const bool shared = !batch.steps.empty() && batch.last_step == step;
    batch.steps.push_back(shared ? batch.steps.back()
                                 : at::full({}, static_cast<double>(step), value.options().dtype(at::kFloat)));
    batch.last_step = step;
  }

  torch::optim::AdamW& optimizer_;
  const AdamWOptions& options_;
  std::vector<AdamBatch> batches_;
  std::vector<module::ShardUpdate> updates_;
};

class SgdStep {
 public:
  SgdStep(torch::optim::SGD& optimizer, const SGDOptions& options) : optimizer_(optimizer), options_(options) {}

  void add(const at::Tensor& parameter) {
    const auto [buffer, first] = buffer_of(parameter);
    module::ShardUpdate& update = updates_.emplace_back(buffer.defined() ? buffer : parameter);
    const at::Tensor value = write_numbers(update, parameter);
    const at::Tensor gradient = module::real_numbers(update.read(parameter.grad()));
    if (value.is_meta()) return;  // of another pipeline stage
    SgdBatch& batch = batch_for(value, first);
    batch.values.push_back(value);
    batch.gradients.push_back(gradient);
    if (buffer.defined()) batch.buffers.push_back(write_numbers(update, buffer));
  }

  void run() {
    for (SgdBatch& batch : std::exchange(batches_, {})) {
      at::_fused_sgd_(batch.values, batch.gradients, batch.buffers, options_.weight_decay(), options_.momentum(),
                      options_.lr(), options_.dampening(), options_.nesterov(), /*maximize=*/false, batch.first_step);
    }
    finish(std::exchange(updates_, {}));
  }

 private:
  /// The momentum of `parameter`, undefined if the options have none, and whether it is new.
  std::pair<at::Tensor, bool> buffer_of(const at::Tensor& parameter) {
    if (options_.momentum() == 0) return {at::Tensor(), false};
    auto& slot = optimizer_.state()[parameter.unsafeGetTensorImpl()];
    if (slot == nullptr) slot = std::make_unique<SGDParamState>();
    auto& state = static_cast<SGDParamState&>(*slot);
    const bool first = !state.momentum_buffer().defined();
    state.momentum_buffer(placed_for(parameter, state.momentum_buffer()));
    return {state.momentum_buffer(), first};
  }

  SgdBatch& batch_for(const at::Tensor& value, bool first) {
    const auto fits = [&](const SgdBatch& batch) { return batch.first_step == first && takes(batch, value); };
    const auto found = std::find_if(batches_.begin(), batches_.end(), fits);
    if (found != batches_.end()) return *found;
    batches_.emplace_back().first_step = first;
    return batches_.back();
  }

  torch::optim::SGD& optimizer_;
  const SGDOptions& options_;
  std::vector<SgdBatch> batches_;
  std::vector<module::ShardUpdate> updates_;
};

at::Tensor evaluate(const torch::optim::Optimizer::LossClosure& closure) {
  if (closure == nullptr) return {};
  const at::AutoGradMode enable_gradients(true);
  return closure();
}

template <class Step, class Options, class Optimizer>
at::Tensor run_step(Optimizer& optimizer, const torch::optim::Optimizer::LossClosure& closure) {
  const at::NoGradGuard no_grad;
  at::Tensor loss = evaluate(closure);
  for (auto& group : optimizer.param_groups()) {
    Step step(optimizer, static_cast<const Options&>(group.options()));
    std::unordered_set<const void*> added;
    for (const at::Tensor& parameter : group.params()) {
      if (!parameter.grad().defined()) continue;
      // Listed twice, a parameter is updated twice, one after the other.
      if (!added.insert(parameter.unsafeGetTensorImpl()).second) step.run();
      step.add(parameter);
    }
    step.run();
  }
  return loss;
}

}  // namespace

torch::Tensor FusedAdamW::step(LossClosure closure) { return run_step<AdamStep, AdamWOptions>(*this, closure); }

torch::Tensor FusedSgd::step(LossClosure closure) { return run_step<SgdStep, SGDOptions>(*this, closure); }

}  // namespace tessera
