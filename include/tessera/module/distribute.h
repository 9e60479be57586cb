// SPDX-License-Identifier: Apache-2.0
// Spreads an unmodified module over a mesh.
#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <memory>

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
///
/// Throws    ConfigError if no parameter is on a mesh
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

/// Reduces the gradients that backward passes under NoSync left partial, as a backward without it does. Nothing is sent for
/// those that are whole. Reductions are under way when it returns.
/// Order   collective; outside of backward
void reduce_gradients(torch::nn::Module& module);

}  // namespace tessera
