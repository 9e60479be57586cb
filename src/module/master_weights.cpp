// SPDX-License-Identifier: Apache-2.0
// fp32 copies of 16-bit parameters.
#include "tessera/module/master_weights.h"

#include <ATen/core/grad_mode.h>
#include <torch/optim/lbfgs.h>
#include <torch/serialize/input-archive.h>
#include <torch/serialize/output-archive.h>

#include "module/gradient_shards.h"
#include "tessera/base/error.h"

namespace tessera {
namespace {

/// Nothing to choose: the inner optimizer has the options. An optimizer's options must be cloneable.
struct NoOptions final : torch::optim::OptimizerCloneableOptions<NoOptions> {};

bool needs_copy(const at::Tensor& parameter) {
  return parameter.scalar_type() == at::kBFloat16 || parameter.scalar_type() == at::kHalf;
}

/// A parameter that needs no copy stands for itself.
std::vector<at::Tensor> copies_of(const std::vector<at::Tensor>& parameters) {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> copies;
  for (const at::Tensor& parameter : parameters) {
    copies.push_back(needs_copy(parameter) ? parameter.detach().to(at::kFloat).set_requires_grad(true) : parameter);
  }
  return copies;
}

std::string key_of(std::size_t index) { return fmt::format("master{}", index); }

}  // namespace

MasterWeights::MasterWeights(const std::vector<at::Tensor>& parameters, const Make& make)
    : torch::optim::Optimizer(module::each_once(parameters), std::make_unique<NoOptions>()) {
  masters_ = copies_of(param_groups().front().params());
  inner_ = make(masters_);
  check<ConfigError>(dynamic_cast<const torch::optim::LBFGS*>(inner_.get()) == nullptr,
                     "MasterWeights: torch::optim::LBFGS computes the loss again within its step, from copies that the "
                     "model does not read; allowed: optimizers that need no closure; use AdamW or SGD");
}

void MasterWeights::add_param_group(const torch::optim::OptimizerParamGroup& group) {
  torch::optim::OptimizerParamGroup own(module::each_once(group.params()));
  const std::vector<at::Tensor> masters = copies_of(own.params());
  torch::optim::OptimizerParamGroup inner(masters);
  if (group.has_options()) inner.set_options(group.options().clone());
  Optimizer::add_param_group(own);
  inner_->add_param_group(inner);
  masters_.insert(masters_.end(), masters.begin(), masters.end());
}

std::vector<at::Tensor> MasterWeights::with_copies() const {
  std::vector<at::Tensor> all;
  for (const auto& group : param_groups()) all.insert(all.end(), group.params().begin(), group.params().end());
  check<ConfigError>(all.size() == masters_.size(),
                     "MasterWeights: {} parameters, {} of them with a copy; allowed: a copy of each; call "
                     "add_param_group of MasterWeights, not that of torch::optim::Optimizer",
                     all.size(), masters_.size());
  return all;
}

torch::Tensor MasterWeights::step(LossClosure closure) {
  at::Tensor loss;
  if (closure != nullptr) {
    const at::AutoGradMode enable_gradients(true);
    loss = closure();
  }
  const at::NoGradGuard no_grad;
  const std::vector<at::Tensor> parameters = with_copies();
  for (std::size_t i = 0; i < masters_.size(); ++i) {
    if (masters_[i].is_same(parameters[i])) continue;
    const at::Tensor& gradient = parameters[i].grad();
    masters_[i].mutable_grad() = gradient.defined() ? gradient.to(at::kFloat) : at::Tensor();
  }
  inner_->step();
  for (std::size_t i = 0; i < masters_.size(); ++i) {
    if (masters_[i].is_same(parameters[i]) || !parameters[i].grad().defined()) continue;
    parameters[i].copy_(masters_[i]);
    masters_[i].mutable_grad() = at::Tensor();
  }
  return loss;
}

void MasterWeights::save(torch::serialize::OutputArchive& archive) const {
  (void)with_copies();
  for (std::size_t i = 0; i < masters_.size(); ++i) archive.write(key_of(i), masters_[i], /*is_buffer=*/true);
  torch::serialize::OutputArchive inner(archive.compilation_unit());
  inner_->save(inner);
  archive.write("inner", inner);
}

void MasterWeights::load(torch::serialize::InputArchive& archive) {
  const at::NoGradGuard no_grad;
  const std::vector<at::Tensor> parameters = with_copies();
  for (std::size_t i = 0; i < masters_.size(); ++i) {
    at::Tensor value;
    archive.read(key_of(i), value, /*is_buffer=*/true);
    masters_[i].copy_(value);
    parameters[i].copy_(value);
  }
  torch::serialize::InputArchive inner;
  archive.read("inner", inner);
  inner_->load(inner);
}

}  // namespace tessera
