// SPDX-License-Identifier: Apache-2.0
// Dynamic loss scaling.
#include "tessera/module/grad_scaler.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/_amp_foreach_non_finite_check_and_unscale.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include "module/gradient_shards.h"
#include "tessera/base/error.h"
#include "tessera/module/master_weights.h"

namespace tessera {
namespace {

std::vector<at::Tensor> parameters_of(const torch::optim::Optimizer& optimizer) {
  std::vector<at::Tensor> parameters;
  for (const auto& group : optimizer.param_groups()) {
    parameters.insert(parameters.end(), group.params().begin(), group.params().end());
  }
  return parameters;
}

/// Their steps read gradients of any dtype, and fp16 has no room for small ones once they are unscaled.
void widen_gradients(const MasterWeights& optimizer) {
  for (const at::Tensor& parameter : parameters_of(optimizer)) {
    at::Tensor& gradient = parameter.mutable_grad();
    if (gradient.defined() && gradient.scalar_type() == at::kHalf) gradient = gradient.to(at::kFloat);
  }
}

/// Multiplies by `factor`; true if something was not finite on any rank of the group's mesh.
bool unscale_group(const module::GradientGroup& group, double factor) {
  module::reduce_partial(group);
  std::vector<at::Tensor> parts = module::local_parts(group);
  for (at::Tensor& part : parts) part = module::real_numbers(part);
  for (const at::Tensor& part : parts) {
    check<Error>(part.scalar_type() != at::kHalf,
                 "GradScaler: a gradient is fp16; allowed: fp32 parameters with autocast, or fp16 parameters of "
                 "MasterWeights; use make_master_weights<...>(model->parameters(), options)");
  }
  const at::Device device = group.mesh ? group.mesh->device() : parts.front().device();
  const at::TensorOptions options = at::TensorOptions(device).dtype(at::kFloat);
  at::Tensor found_inf = at::zeros({1}, options);
  if (!parts.empty()) at::_amp_foreach_non_finite_check_and_unscale_(parts, found_inf, at::full({1}, factor, options));
  module::mark_written(group);
  if (group.mesh && group.mesh->size() > 1) group.mesh->everyone().all_reduce(found_inf, comm::ReduceOp::kMax);
  return found_inf.item<float>() != 0;
}

}  // namespace

GradScaler::GradScaler(const Options& options) : options_(options), state_{options.init_scale, 0} {
  check<ConfigError>(options.init_scale > 0, "GradScaler: init_scale = {}; allowed: above 0", options.init_scale);
  check<ConfigError>(options.growth_factor > 1, "GradScaler: growth_factor = {}; allowed: above 1",
                     options.growth_factor);
  check<ConfigError>(options.backoff_factor > 0 && options.backoff_factor < 1,
                     "GradScaler: backoff_factor = {}; allowed: between 0 and 1", options.backoff_factor);
  check<ConfigError>(options.growth_interval > 0, "GradScaler: growth_interval = {}; allowed: 1 and above",
                     options.growth_interval);
}

at::Tensor GradScaler::scale(const at::Tensor& loss) const {
  return options_.enabled ? loss.to(c10::promoteTypes(loss.scalar_type(), at::kFloat)).mul(state_.scale) : loss;
}

void GradScaler::unscale_(torch::optim::Optimizer& optimizer) {
  if (!options_.enabled) return;
  const auto [progress, first] = progress_.try_emplace(&optimizer);
  check<Error>(first,
               "GradScaler.unscale_: called for this optimizer since the last update(); call it once, before step()");
  const at::NoGradGuard no_grad;
  if (const auto* masters = dynamic_cast<const MasterWeights*>(&optimizer)) widen_gradients(*masters);
  for (const module::GradientGroup& group : module::group_gradients(parameters_of(optimizer))) {
    if (unscale_group(group, 1.0 / state_.scale)) progress->second.found_inf = true;
  }
}

bool GradScaler::step(torch::optim::Optimizer& optimizer) {
  if (!options_.enabled) {
    optimizer.step();
    return true;
  }
  if (!progress_.contains(&optimizer)) unscale_(optimizer);
  Progress& progress = progress_.at(&optimizer);
  check<Error>(!progress.stepped, "GradScaler.step: called for this optimizer since the last update(); call update()");
  progress.stepped = true;
  if (!progress.found_inf) optimizer.step();
  return !progress.found_inf;
}

void GradScaler::update() {
  if (!options_.enabled) return;
  check<Error>(!progress_.empty(), "GradScaler.update: no optimizer was stepped since the last one; call step() first");
  bool found_inf = false;
  for (const auto& [optimizer, progress] : progress_) found_inf = found_inf || progress.found_inf;
  progress_.clear();
  if (found_inf) {
    state_ = {state_.scale * options_.backoff_factor, 0};
  } else if (++state_.growth_tracker == options_.growth_interval) {
    state_ = {state_.scale * options_.growth_factor, 0};
  }
}

}  // namespace tessera
