// SPDX-License-Identifier: Apache-2.0
// Optimizer updates while backward still runs, so that gradients need not be kept.
#pragma once

#include <torch/optim/optimizer.h>

#include <functional>
#include <memory>
#include <utility>
#include <vector>

namespace tessera {

/// While it lives, each parameter is updated in the backward that completes its gradient, as soon as the gradient is
/// reduced and lies where the plan says; then the gradient is freed. There is one optimizer per parameter, and no call
/// of step() or zero_grad().
///
///   distribute(*model, mesh, Plan().zero(3));
///   const auto updates = apply_in_backward<FusedAdamW>(model->parameters(), torch::optim::AdamWOptions(1e-3));
///   for (...) (void)step(*model, x, target, loss);
///
/// Memory    gradients that are being reduced, instead of all of them. Sharded ones (ZeRO 2 and 3): at most
///           DistributeOptions::first_bucket_bytes of whole gradients, or the largest. Replicated ones: two buckets.
/// Order     after distribute(); updates are collective wherever a step of the optimizer is
/// Values    what step() after backward gives. Under NoSync gradients stay and add up; the backward after it updates.
///           A backward that throws has updated some parameters; zero_grad() drops the gradients of the others.
/// Not with  what looks at all gradients before the update (clip_grad_norm_, GradScaler, check_finite), or a forward
///           whose backward comes after an update of what it saved: autograd refuses that one
/// Throws    ConfigError for a parameter whose hook after accumulation is somebody else's
/// Source    PyTorch's torch.distributed.optim._apply_optimizer_in_backward
/// Checked   module/apply_in_backward_test, module/build_memory
class ApplyInBackward {
 public:
  using Make = std::function<std::unique_ptr<torch::optim::Optimizer>(std::vector<at::Tensor> parameter)>;

  /// `make` builds the optimizer of one parameter.
  ApplyInBackward(const std::vector<at::Tensor>& parameters, const Make& make);
  ~ApplyInBackward();
  ApplyInBackward(ApplyInBackward&&) noexcept = default;
  ApplyInBackward& operator=(ApplyInBackward&&) = delete;
  ApplyInBackward(const ApplyInBackward&) = delete;
  ApplyInBackward& operator=(const ApplyInBackward&) = delete;

  /// In the order of the parameters, tied ones once: for learning rate schedules and checkpoints.
  [[nodiscard]] const std::vector<std::unique_ptr<torch::optim::Optimizer>>& optimizers() const noexcept {
    return optimizers_;
  }

 private:
  std::vector<at::Tensor> parameters_;
  std::vector<std::unique_ptr<torch::optim::Optimizer>> optimizers_;
};

template <class Optimizer, class Options>
[[nodiscard]] ApplyInBackward apply_in_backward(const std::vector<at::Tensor>& parameters, const Options& options) {
  return ApplyInBackward(parameters, [&](std::vector<at::Tensor> parameter) {
    return std::make_unique<Optimizer>(std::move(parameter), options);
  });
}

}  // namespace tessera
