// SPDX-License-Identifier: Apache-2.0
// torch::optim's AdamW and SGD with one pass over memory per step, for plain and mesh parameters.
#pragma once

#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

namespace tessera {

/// torch::optim::AdamW whose step is one operator call for all parameters of a group, dtype and device, instead of
/// about ten passes over each parameter. An update is element-wise, so a mesh parameter is updated on this rank's
/// shard: where its state lies, or itself if that is the same. Options, state, save and load are AdamW's own.
///
/// Cost      one read of value, gradient and state and one write of value and state; nothing is sent unless a gradient
///           or the state lies differently from the parameter. Under ZeRO 1 and 2 updated parameters are gathered
///           together, as many in one message as fit into 4 MiB.
/// Order     step() is collective if some gradient is still a partial sum
/// Complex   numbers are updated as pairs of real ones, as in PyTorch's Python; torch::optim::AdamW takes the square of
///           the gradient for its second moment instead
/// Throws    ShapeError for a sparse gradient
/// Checked   module/fused_optimizers_test: equal to torch::optim::AdamW up to rounding
class FusedAdamW : public torch::optim::AdamW {
 public:
  using torch::optim::AdamW::AdamW;
  torch::Tensor step(LossClosure closure = nullptr) override;
};

/// torch::optim::SGD (momentum, dampening, Nesterov, weight decay) in the same way.
class FusedSgd : public torch::optim::SGD {
 public:
  using torch::optim::SGD::SGD;
  torch::Tensor step(LossClosure closure = nullptr) override;
};

}  // namespace tessera
