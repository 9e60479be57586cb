// SPDX-License-Identifier: Apache-2.0
// Builds a module whose parameters are on a mesh from the first moment: no rank ever holds them whole.
#pragma once

#include <c10/util/Exception.h>
#include <torch/nn/module.h>

#include <concepts>
#include <functional>
#include <memory>
#include <utility>

#include "tessera/mesh/mesh.h"
#include "tessera/module/distribute.h"
#include "tessera/module/plan.h"

namespace tessera {

namespace module {

/// While it lives, tensors that this thread makes have sizes but no memory, and what is done to them is recorded.
class Recording {
 public:
  Recording();
  ~Recording();
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

  /// Ends the recording, gives the module's parameters and buffers memory where `plan` puts them, by doing again what
  /// was recorded, and distributes the module.
  void build(torch::nn::Module& module, const Mesh& mesh, const std::function<Plan(const torch::nn::Module&)>& plan,
             const DistributeOptions& options);

  /// The user's mistake of reading values that are not there yet, in words that help. Rethrows what is under way.
  [[noreturn]] static void rethrow_with_remedy();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace module

/// Runs `make` without memory and returns the module that it made, with parameters and buffers on `mesh`:
///
///   auto model = tessera::build(mesh, plan, [] { return Gpt(config); });
///
/// is as make() followed by distribute(), except for its memory: each rank holds its shards, and temporaries of the
/// size of a shard. Ordinary modules work as they are, with their initialisation, torch::nn::init and code under
/// NoGradGuard (weight.slice(0, 0, 3).zero_()).
///
/// Values    random ones come from the mesh's generator (tessera/tensor/random.h), so they depend neither on the plan
/// nor
///           on the number of ranks; call manual_seed(mesh, seed) before
/// Plan      a Plan, or a function from the module without memory to a Plan, for instance
///           [](const torch::nn::Module& m) { return plan_for_transformer(m.named_parameters().keys()); }
/// Make      returns a module holder, or a shared_ptr to a module; it must not read memory (data_ptr(), printing) or
///           values that are drawn, nor pass a torch::Generator. Tensors made before are used as they are: the same on
///           every rank.
/// Cost      one collective per parameter at most; none where operators follow the plan
/// Order     collective; as distribute()
/// Operators any. Where LibTorch cannot tell what a result is like without computing it (abs, where, flip, one_hot), it is
///           computed for a moment, up to 64 MiB. Values can be read (item()) if nothing was drawn for them.
/// Throws    ConfigError naming the operator that cannot do without values, or is beyond 64 MiB; what distribute()
///           throws
template <class MakePlan, std::invocable Make>
requires std::same_as<std::remove_cvref_t<MakePlan>, Plan> || std::invocable<MakePlan&, const torch::nn::Module&>
[[nodiscard]] auto build(const Mesh& mesh, const MakePlan& plan, Make&& make, const DistributeOptions& options = {}) {
  module::Recording recording;
  auto module = [&] {
    try {
      return make();
    } catch (const c10::Error&) {
      module::Recording::rethrow_with_remedy();
    }
  }();
  if constexpr (std::same_as<std::remove_cvref_t<MakePlan>, Plan>) {
    recording.build(
        *module, mesh, [&plan](const torch::nn::Module&) { return plan; }, options);
  } else {
    recording.build(*module, mesh, plan, options);
  }
  return module;
}

}  // namespace tessera
