// SPDX-License-Identifier: Apache-2.0
// Spreads an unmodified module over a mesh.
#include "tessera/module/distribute.h"

#include "module/gradient_reducer.h"
#include "tessera/base/error.h"

namespace tessera {
namespace {

template <class Named>
void place(const Named& named, const Mesh& mesh, const std::function<Placements(const std::string&)>& placements_of,
           const std::function<void(const at::Tensor&)>& then) {
  for (const auto& item : named) {
    at::Tensor tensor = item.value();
    // Tied parameters are one tensor under several names.
    if (!tensor.defined() || is_mesh_tensor(tensor)) continue;
    try {
      distribute_(tensor, mesh, placements_of(item.key()));
    } catch (const ShapeError& error) {
      throw ShapeError(fmt::format("parameter {}: {}", item.key(), error.what()));
    }
    then(tensor);
  }
}

}  // namespace

void distribute(torch::nn::Module& module, const Mesh& mesh, const Plan& plan, const DistributeOptions& options) {
  const auto parameters = module.named_parameters();
  plan.check_matches(parameters.keys());
  const auto reducer = std::make_shared<module::GradientReducer>(options);
  place(parameters, mesh, [&](const std::string& name) { return plan.placements_of(name, mesh); },
        [&](const at::Tensor& parameter) {
          if (parameter.requires_grad()) module::attach(parameter, reducer);
        });
  place(module.named_buffers(), mesh, [&](const std::string&) { return Placements::replicated(mesh.num_axes()); },
        [](const at::Tensor&) {});
}

at::Tensor shard_batch(const Mesh& mesh, const at::Tensor& batch) {
  return distribute(batch, mesh, mesh.batch_placements());
}

struct NoSync::State {
  std::shared_ptr<module::GradientReducer> reducer;
  bool before = true;
};

NoSync::NoSync(torch::nn::Module& module) : state_(std::make_unique<State>()) {
  for (const at::Tensor& parameter : module.parameters()) {
    state_->reducer = module::reducer_of(parameter);
    if (state_->reducer != nullptr) break;
  }
  check<ConfigError>(state_->reducer != nullptr, "NoSync: the module is not on a mesh; call tessera::distribute first");
  state_->before = state_->reducer->synchronising();
  state_->reducer->set_synchronising(false);
}

NoSync::~NoSync() { state_->reducer->set_synchronising(state_->before); }

}  // namespace tessera
