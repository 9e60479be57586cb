// SPDX-License-Identifier: Apache-2.0
// Moving averages on local shards.
#include "tessera/module/ema.h"

#include <ATen/core/grad_mode.h>

#include "module/gradient_shards.h"
#include "tessera/base/error.h"

namespace tessera {

Ema::Ema(const std::vector<at::Tensor>& parameters, double decay)
    : parameters_(module::each_once(parameters)), decay_(decay) {
  check<ConfigError>(decay >= 0 && decay <= 1, "Ema: decay = {}; allowed: 0 to 1, for instance 0.999", decay);
  for (const at::Tensor& parameter : parameters_) averages_.push_back(parameter.detach().clone());
}

void Ema::update() {
  const at::NoGradGuard no_grad;
  for (std::size_t i = 0; i < parameters_.size(); ++i) averages_[i].lerp_(parameters_[i], 1 - decay_);
}

void Ema::swap() {
  const at::NoGradGuard no_grad;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const at::Tensor value = parameters_[i].detach().clone();
    parameters_[i].copy_(averages_[i]);
    averages_[i].copy_(value);
  }
}

}  // namespace tessera
