// SPDX-License-Identifier: Apache-2.0
// Building without memory: record, then do it again on the mesh.
#include "tessera/module/build.h"

#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <mutex>
#include <set>

#include "module/replay.h"
#include "module/stage_plan.h"
#include "module/tape.h"
#include "tensor/layout.h"
#include "tessera/base/error.h"

namespace tessera::module {
namespace {

/// The tape of this thread's recording. The dispatcher hands a factory's kernel nothing that could lead to it.
thread_local Tape* current_tape = nullptr;  // NOLINT(cppcoreguidelines-avoid-non-const-global-variables)

constexpr c10::DispatchKey kKey = c10::DispatchKey::DeferredInit;

void record(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const c10::impl::ExcludeDispatchKeyGuard once(kKey);
  if (current_tape == nullptr) {
    op.callBoxed(stack);
  } else {
    current_tape->record(op, *stack);
  }
}

void register_recorder() {
  static std::once_flag once;
  std::call_once(once, [] {
    static torch::Library any(torch::Library::IMPL, "_", kKey, __FILE__, __LINE__);
    any.fallback(torch::CppFunction::makeFromBoxedFunction<&record>());
  });
}

struct Target {
  std::string name;
  at::Tensor tensor;
  Placements placements;
};

/// Parameters and buffers without memory, each once, and where they go.
std::vector<Target> targets_of(const torch::nn::Module& module, const Mesh& mesh, const Plan& plan) {
  std::vector<Target> targets;
  std::set<const at::TensorImpl*> seen;
  const auto add = [&](const auto& named, const auto& placements_of) {
    for (const auto& item : named) {
      const at::Tensor& tensor = item.value();
      if (!tensor.defined() || !tensor.is_meta() || !seen.insert(tensor.unsafeGetTensorImpl()).second) continue;
      targets.push_back({item.key(), tensor, placements_of(item.key(), tensor)});
      for (const Placement& placement : targets.back().placements) {
        check<ShapeError>(!placement.is_shard() || placement.dim < tensor.dim(),
                          "parameter {}: {} of a tensor of sizes [{}], which has {} dims; shard one of them",
                          item.key(), to_string(placement), fmt::join(tensor.sizes(), ", "), tensor.dim());
      }
      Placements& placements = targets.back().placements;
      tensor::check_cuts("parameter " + item.key(), tensor.sizes(), placements, mesh);
      placements = tensor::canonical(placements, tensor.sizes(), mesh);
    }
  };
  const StagePlan stages(module, mesh, plan);
  add(module.named_parameters(), [&](const std::string& name, const at::Tensor& tensor) {
    Placements placements = plan.layout_of(name, tensor.dim(), mesh).value;
    stages.apply(tensor, placements);
    return placements;
  });
  add(module.named_buffers(), [&](const std::string&, const at::Tensor& tensor) {
    Placements placements = Placements::replicated(mesh.num_axes());
    stages.apply(tensor, placements);
    return placements;
  });
  return targets;
}

/// Gives the module's tensors their memory.
void materialise(const Tape& tape, const std::vector<Target>& targets, const Mesh& mesh) {
  std::map<ValueId, Placements> wanted;
  for (const Target& target : targets) {
    const ValueId id = tape.find(target.tensor);
    check<ConfigError>(id >= 0,
                       "build: parameter {} has no memory, and no recorded operator made it; make it with LibTorch's "
                       "operators inside tessera::build",
                       target.name);
    wanted.emplace(id, target.placements);
  }
  Replay replay(tape, mesh, wanted);
  replay.run();
  for (const Target& target : targets) {
    const at::Tensor value = replay.value(tape.find(target.tensor));
    target.tensor.unsafeGetTensorImpl()->shallow_copy_from(value.getIntrusivePtr());
  }
}

}  // namespace

struct Recording::State {
  Tape tape;
  Tape* outer = nullptr;
  std::optional<c10::impl::IncludeDispatchKeyGuard> guard;

  void stop() {
    if (!guard) return;
    guard.reset();
    current_tape = outer;
  }
};

Recording::Recording() : state_(std::make_unique<State>()) {
  register_recorder();
  state_->outer = std::exchange(current_tape, &state_->tape);
  state_->guard.emplace(kKey);
}

Recording::~Recording() { state_->stop(); }

void Recording::build(torch::nn::Module& module, const Mesh& mesh,
                      const std::function<Plan(const torch::nn::Module&)>& plan, const DistributeOptions& options) {
  state_->stop();
  const Plan chosen = plan(module);
  chosen.check_matches(module.named_parameters().keys());
  materialise(state_->tape, targets_of(module, mesh, chosen), mesh);
  distribute(module, mesh, chosen, options);
}

void Recording::rethrow_with_remedy() {
  try {
    throw;
  } catch (const c10::Error& error) {
    const std::string reason = error.what_without_backtrace();
    throw ConfigError(
        fmt::format("build: the module's constructor failed without memory: {}; tensors have no values until "
                    "tessera::build returns: read them (data_ptr(), torch::tensor(vector)) before or after",
                    reason.substr(0, reason.find('\n'))));
  }
}

}  // namespace tessera::module
