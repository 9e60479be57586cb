// SPDX-License-Identifier: Apache-2.0
// fp32 copies of 16-bit parameters, for any optimizer of torch::optim.
#pragma once

#include <torch/optim/optimizer.h>

#include <functional>
#include <memory>
#include <vector>

namespace tessera {

/// An optimizer over bf16 or fp16 parameters that updates fp32 copies ("master weights") of them: small updates, which
/// a 16-bit value would swallow, add up. Copies lie like the parameters; parameters of other dtypes are updated
/// directly. A GradScaler makes fp16 gradients fp32 ones when it unscales them.
///
///   auto optimizer = make_master_weights<torch::optim::AdamW>(model->parameters(), torch::optim::AdamWOptions(1e-3));
///
/// Memory    4 bytes per element for the copy, 4 for its gradient during step()
/// Source    Micikevicius et al. 2018, arXiv:1710.03740, section 3.1
class MasterWeights : public torch::optim::Optimizer {
 public:
  using Make = std::function<std::unique_ptr<torch::optim::Optimizer>(std::vector<at::Tensor> masters)>;

  /// `make` builds the inner optimizer over the copies. Throws ConfigError for torch::optim::LBFGS, whose step computes
  /// the loss again: optimizers that need a closure do not work on copies.
  MasterWeights(const std::vector<at::Tensor>& parameters, const Make& make);

  /// As in Optimizer, which it hides; the group's options, if any, are those of the inner optimizer. What comes past it
  /// has no copy: step(), save() and load() throw ConfigError.
  void add_param_group(const torch::optim::OptimizerParamGroup& group);

  /// Gradients to fp32, the inner optimizer's step, values back to the parameters.
  torch::Tensor step(LossClosure closure = nullptr) override;
  /// Copies and the inner optimizer's state.
  void save(torch::serialize::OutputArchive& archive) const override;
  void load(torch::serialize::InputArchive& archive) override;

  /// The optimizer that updates the copies: learning rate schedulers belong to it.
  [[nodiscard]] torch::optim::Optimizer& inner() noexcept { return *inner_; }
  /// In the order of the parameters, tied ones once; a parameter that needs no copy stands for itself.
  [[nodiscard]] const std::vector<at::Tensor>& masters() const noexcept { return masters_; }

 private:
  /// The parameters of all groups, in the order of masters().
  [[nodiscard]] std::vector<at::Tensor> with_copies() const;

  std::vector<at::Tensor> masters_;
  std::unique_ptr<torch::optim::Optimizer> inner_;
};

template <class Optimizer, class Options>
[[nodiscard]] std::unique_ptr<MasterWeights> make_master_weights(const std::vector<at::Tensor>& parameters,
                                                                 const Options& options) {
  return std::make_unique<MasterWeights>(parameters, [&](std::vector<at::Tensor> masters) {
    return std::make_unique<Optimizer>(std::move(masters), options);
  });
}

}  // namespace tessera
