// SPDX-License-Identifier: Apache-2.0
// On which pipeline stages the tensors of a module lie.
#include "module/stage_plan.h"

#include <algorithm>

#include "module/stage_patterns.h"
#include "tessera/base/error.h"
#include "tessera/base/text.h"
#include "tessera/tensor/stages.h"

namespace tessera::module {

StagePlan::StagePlan(const torch::nn::Module& module, const Mesh& mesh, const Plan& plan) {
  const int axis = mesh.axis_index("pp");
  if (axis < 0 || mesh.axis_size(axis) == 1) return;
  axis_ = axis;
  check<ConfigError>(!plan.stages().empty(),
                     "plan: mesh {} has an axis pp, but the plan names no stages; add them, for instance "
                     "plan.stages(balanced_stages(module, {}))",
                     mesh.to_string(), mesh.axis_size(axis));
  set_stages(mesh, plan.rank_of_stage(mesh.axis_size(axis)));
  for (const auto& item : module.named_parameters()) add(item.key(), item.value(), plan);
  for (const auto& item : module.named_buffers()) add(item.key(), item.value(), plan);
  check_all_used(plan);
  std::vector<std::string> names = module.named_parameters().keys();
  for (const std::string& buffer : module.named_buffers().keys()) names.push_back(buffer);
  check_shared(names, plan);
}

StageSet StagePlan::of(const at::Tensor& tensor) const {
  const auto found = sets_.find(tensor.unsafeGetTensorImpl());
  return found == sets_.end() ? 0 : found->second;
}

void StagePlan::apply(const at::Tensor& tensor, Placements& placements) const {
  if (const StageSet stages = of(tensor); stages != 0) placements[axis_] = Stages(stages);
}

void StagePlan::add(const std::string& name, const at::Tensor& tensor, const Plan& plan) {
  if (!tensor.defined()) return;
  const StageSet stages = plan.stage_of(name);
  check<ConfigError>(stages != 0,
                     "plan: no stage names \"{}\"; add it, or the module that it is part of, to one of the {} stages",
                     name, plan.stages().size());
  sets_[tensor.unsafeGetTensorImpl()] |= stages;
  used_ |= stages;
}

void StagePlan::check_all_used(const Plan& plan) const {
  for (std::size_t k = 0; k < plan.stages().size(); ++k) {
    check<ConfigError>((used_ >> k & 1U) != 0,
                       "plan: stage {} of {} ({}) names no parameter; name a part of the module that no earlier stage "
                       "names, or have fewer stages",
                       k, plan.stages().size(), fmt::join(plan.stages()[k], ", "));
  }
}

void StagePlan::check_shared(const std::vector<std::string>& tensors, const Plan& plan) {
  for (std::size_t k = 0; k < plan.stages().size(); ++k) {
    for (const std::string& pattern : plan.stages()[k]) {
      const auto shared = shared_pattern(pattern);
      if (!shared) continue;
      const bool any = std::any_of(tensors.begin(), tensors.end(),
                                   [&](const std::string& name) { return module::names(*shared, name); });
      check<ConfigError>(any, "plan: stage {} has \"{}\", which names no parameter or buffer; the nearest name is \"{}\"", k,
                         pattern, base::nearest_word(*shared, tensors));
    }
  }
}

}  // namespace tessera::module
