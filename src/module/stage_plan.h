// SPDX-License-Identifier: Apache-2.0
// On which pipeline stages the tensors of a module lie.
#pragma once

#include <torch/nn/module.h>

#include <map>
#include <string>
#include <vector>

#include "tessera/module/plan.h"

namespace tessera::module {

/// The stages of every parameter and buffer of one module; nothing if the mesh has no axis pp.
class StagePlan {
 public:
  /// Also tells the mesh which rank computes which stage.
  /// Throws  ConfigError naming a tensor without stage, a stage without tensors, or a shared name that nothing has
  StagePlan(const torch::nn::Module& module, const Mesh& mesh, const Plan& plan);

  /// A tied parameter lies on the stages of all its names. 0: the mesh has no stages.
  [[nodiscard]] StageSet of(const at::Tensor& tensor) const;
  /// Writes the placement on axis pp.
  void apply(const at::Tensor& tensor, Placements& placements) const;

 private:
  void add(const std::string& name, const at::Tensor& tensor, const Plan& plan);
  void check_all_used(const Plan& plan) const;
  static void check_shared(const std::vector<std::string>& tensors, const Plan& plan);

  int axis_ = -1;
  StageSet used_ = 0;
  std::map<const at::TensorImpl*, StageSet> sets_;
};

}  // namespace tessera::module
