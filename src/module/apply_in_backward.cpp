// SPDX-License-Identifier: Apache-2.0
// One optimizer per parameter, called by the reducer of its gradient.
#include "tessera/module/apply_in_backward.h"

#include <ATen/core/NamedTensor.h>

#include "module/gradient_reducer.h"
#include "module/gradient_shards.h"

namespace tessera {

ApplyInBackward::ApplyInBackward(const std::vector<at::Tensor>& parameters, const Make& make)
    : parameters_(module::each_once(parameters)) {
  for (const at::Tensor& parameter : parameters_) optimizers_.push_back(make({parameter}));
  const auto alone = std::make_shared<module::GradientReducer>(DistributeOptions());
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    if (module::reducer_of(parameters_[i]) == nullptr) module::attach(parameters_[i], alone, Placements());
    module::set_when_complete(parameters_[i], [optimizer = optimizers_[i].get()](const at::Tensor& parameter) {
      // As in a node: what is added here is no sum of gradients that autograd makes (tensor/gradient_sum.h).
      const at::NoNamesGuard no_names;
      optimizer->step();
      parameter.mutable_grad() = at::Tensor();
    });
  }
}

ApplyInBackward::~ApplyInBackward() {
  for (const at::Tensor& parameter : parameters_) module::set_when_complete(parameter, nullptr);
}

}  // namespace tessera
