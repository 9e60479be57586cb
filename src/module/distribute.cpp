// SPDX-License-Identifier: Apache-2.0
// Spreads an unmodified module over a mesh.
#include "tessera/module/distribute.h"

#include <set>

#include "module/gradient_reducer.h"
#include "module/parts.h"
#include "module/stage_plan.h"
#include "tensor/activation_budget.h"
#include "tensor/decision_cache.h"
#include "tensor/layout.h"
#include "tensor/mesh_storage.h"
#include "tessera/base/error.h"

namespace tessera {
namespace {

void place(const std::string& name, at::Tensor& tensor, const Mesh& mesh, const Placements& placements) {
  try {
    distribute_(tensor, mesh, placements);
  } catch (const ShapeError& error) {
    throw ShapeError(fmt::format("parameter {}: {}", name, error.what()));
  }
}

/// What all parameters of a module share.
struct Shared {
  std::shared_ptr<tensor::GatherAhead> ahead;
  std::shared_ptr<module::GradientReducer> reducer;
};

void place_parameter(const std::string& name, at::Tensor parameter, const Mesh& mesh, const Plan& plan,
                     const module::StagePlan& stages, const Shared& shared) {
  ParameterLayout layout = plan.layout_of(name, parameter.dim(), mesh);
  for (Placements* placements : {&layout.value, &layout.gradient, &layout.state}) {
    stages.apply(parameter, *placements);
    *placements = tensor::canonical(*placements, parameter.sizes(), mesh);
  }
  if (!is_mesh_tensor(parameter)) place(name, parameter, mesh, layout.value);
  tensor::MeshStorage& storage = tensor::storage_of(parameter);
  storage.gathered_at_use = layout.gathered_at_use;
  if (layout.gathered_at_use != 0) storage.gather_ahead = shared.ahead;
  storage.stage.pinned = stages.of(parameter);
  if (layout.planned_outputs != 0) {
    using OutputPlan = tensor::MeshStorage::OutputPlan;
    storage.output_plan = std::make_shared<const OutputPlan>(OutputPlan{layout.planned_outputs, layout.output});
  }
  if (!(layout.state == layout.value)) storage.state_placements = std::make_shared<const Placements>(layout.state);
  module::attach(parameter, shared.reducer, layout.gradient);  // a frozen one too: it may be thawed later
}

/// Parameters know their blocks: forward is recognised by the parameters that it uses.
void mark_blocks(const torch::nn::Module& module, const Mesh& mesh, Recompute recompute) {
  if (recompute == Recompute::kNone) return;
  tensor::MeshRuntime::of(mesh).recompute.enable();
  std::shared_ptr<tensor::ActivationBudget> budget;
  if (recompute.mode == Recompute::kWithin) budget = std::make_shared<tensor::ActivationBudget>(recompute.budget_bytes);
  for (const module::ModulePart& part : module::parts_of(module)) {
    const auto block = std::make_shared<const tensor::Block>(tensor::Block{recompute, budget});
    int number = 0;
    for (const at::Tensor& parameter : part.module->parameters()) {
      if (!parameter.defined()) continue;
      tensor::MeshStorage::OfBlock& of_block = tensor::storage_of(parameter).of_block;
      if (of_block.block == nullptr) of_block = {block, number++};  // a tied parameter is of its first block
    }
  }
}

}  // namespace

void distribute(torch::nn::Module& module, const Mesh& mesh, const Plan& plan, const DistributeOptions& options) {
  const auto parameters = module.named_parameters();
  plan.check_matches(parameters.keys());
  const module::StagePlan stages(module, mesh, plan);
  Shared shared;
  if (plan.prefetch_bytes() > 0) shared.ahead = std::make_shared<tensor::GatherAhead>(plan.prefetch_bytes());
  shared.reducer = std::make_shared<module::GradientReducer>(options, plan.reduce_dtype(), shared.ahead);
  // Tied parameters are one tensor under several names; what tessera::build made is on the mesh already.
  std::set<const at::TensorImpl*> seen;
  for (const auto& item : parameters) {
    if (!item.value().defined() || !seen.insert(item.value().unsafeGetTensorImpl()).second) continue;
    place_parameter(item.key(), item.value(), mesh, plan, stages, shared);
  }
  for (auto& item : module.named_buffers()) {
    if (!item.value().defined()) continue;
    Placements placements = Placements::replicated(mesh.num_axes());
    stages.apply(item.value(), placements);
    if (!is_mesh_tensor(item.value())) place(item.key(), item.value(), mesh, placements);
    tensor::storage_of(item.value()).stage.pinned = stages.of(item.value());
  }
  mark_blocks(module, mesh, plan.recompute());
}

at::Tensor shard_batch(const Mesh& mesh, const at::Tensor& batch) {
  return distribute(batch, mesh, mesh.batch_placements());
}

struct NoSync::State {
  /// Those that were synchronising, of parts of the module that were distributed each for itself.
  std::set<std::shared_ptr<module::GradientReducer>> stopped;
};

NoSync::NoSync(torch::nn::Module& module) : state_(std::make_unique<State>()) {
  bool on_mesh = false;
  for (const at::Tensor& parameter : module.parameters()) {
    const auto reducer = module::reducer_of(parameter);
    // Nobody reduces gradients of a clone.
    on_mesh = on_mesh || reducer != nullptr || is_mesh_tensor(parameter);
    if (reducer != nullptr && reducer->synchronising()) state_->stopped.insert(reducer);
  }
  check<ConfigError>(on_mesh, "NoSync: the module is not on a mesh; call tessera::distribute first");
  for (const auto& reducer : state_->stopped) reducer->set_synchronising(false);
}

NoSync::~NoSync() {
  for (const auto& reducer : state_->stopped) reducer->set_synchronising(true);
}

void reduce_gradients(torch::nn::Module& module) {
  std::vector<at::Tensor> parameters = module.parameters();
  std::shared_ptr<module::GradientReducer> reducer;
  // The last layer's first, as backward does.
  for (auto parameter = parameters.rbegin(); parameter != parameters.rend(); ++parameter) {
    const auto own = module::reducer_of(*parameter);
    if (own == nullptr || !parameter->grad().defined() || !is_mesh_tensor(parameter->grad())) continue;
    if (reducer != nullptr && reducer != own) reducer->finish();
    reducer = own;
    module::reduce_gradient_of(*parameter);
  }
  if (reducer != nullptr) reducer->finish();
}

}  // namespace tessera
