// SPDX-License-Identifier: Apache-2.0
// Spreads an unmodified module over a mesh, and runs its training step.
#pragma once

#include <torch/nn/module.h>

#include <concepts>
#include <cstdint>
#include <memory>
#include <utility>

#include "tessera/module/plan.h"
#include "tessera/tensor/mesh_tensor.h"

namespace tessera {

struct DistributeOptions {
  /// Gradients travel in buckets of about this many bytes per rank; the first bucket is smaller, so that communication
  /// starts early. Source: Li et al. 2020, arXiv:2006.15704, section 3.2.
  std::int64_t bucket_bytes = std::int64_t{25} << 20;
  std::int64_t first_bucket_bytes = std::int64_t{1} << 20;  ///< also: whole gradients awaiting their reduce-scatter
};

/// Turns the module's parameters (as `plan` says) and buffers (replicated) into mesh tensors, in place: optimizers and
/// handles made before or after see them. Rank 0's values are sent to everyone. From then on gradients that are partial
/// sums are reduced in buckets, started while backward still runs.
///
/// Order     collective; before the first forward
/// Throws    ConfigError if a plan pattern matches no parameter; ShapeError if a placement does not fit a parameter
void distribute(torch::nn::Module& module, const Mesh& mesh, const Plan& plan, const DistributeOptions& options = {});

/// A global batch (the same on every rank) -> mesh tensor, sharded along dim 0 over the data-parallel axes.
[[nodiscard]] at::Tensor shard_batch(const Mesh& mesh, const at::Tensor& batch);

/// While it lives, backward passes leave gradients partial, so that several of them add up without communication.
/// The backward after it (or the first reader of a gradient) reduces the sum, once.
class NoSync {
 public:
  explicit NoSync(torch::nn::Module& module);
  ~NoSync();
  NoSync(const NoSync&) = delete;
  NoSync& operator=(const NoSync&) = delete;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Forward, loss and backward of one batch: `loss(forward(input), target)`.
/// Returns the loss, detached; its gradients are in the parameters, reductions under way.
template <class Forward, class Loss>
  requires std::invocable<Forward&, const at::Tensor&>
at::Tensor step(Forward&& forward, const at::Tensor& input, const at::Tensor& target, Loss&& loss) {
  const at::Tensor value = loss(forward(input), target);
  value.backward();
  return value.detach();
}

/// The same for anything with a forward() member: a module or a module holder's impl.
template <class Module, class Loss>
  requires requires(Module& module, const at::Tensor& input) { module.forward(input); }
at::Tensor step(Module& module, const at::Tensor& input, const at::Tensor& target, Loss&& loss) {
  return step([&](const at::Tensor& x) { return module.forward(x); }, input, target, std::forward<Loss>(loss));
}

}  // namespace tessera
