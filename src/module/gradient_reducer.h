// SPDX-License-Identifier: Apache-2.0
// Gradients of one module on their way from partial sums to the whole: buckets, started while backward runs.
#pragma once

#include <ATen/core/Tensor.h>

#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "tessera/module/distribute.h"

namespace tessera::module {

/// Collects gradients in the order in which backward completes them. A bucket's reduction starts when it is full, the
/// rest when backward ends or when somebody reads a gradient. A gradient that is to be sharded is reduce-scattered at
/// once, so that its whole value does not stay. A gradient's storage is pending until then.
///
/// Why here and not in c10d::Reducer: a gradient is a partial mesh tensor, so what has to be reduced, over which axes
/// and by whom is known from its placements alone.
class GradientReducer : public std::enable_shared_from_this<GradientReducer> {
 public:
  explicit GradientReducer(const DistributeOptions& options) : options_(options) {}

  /// Called by the hook of each parameter after its gradient was accumulated; `target` is where it should lie.
  void on_gradient(const at::Tensor& gradient, const Placements& target);

  /// The same outside of backward, and whether synchronising or not. The caller flushes.
  void reduce(const at::Tensor& gradient, const Placements& target);
  /// Starts what is waiting, full bucket or not.
  void flush();
  /// flush(), and waits for what is being scattered.
  void finish();

  void set_synchronising(bool on) noexcept { synchronising_ = on; }
  [[nodiscard]] bool synchronising() const noexcept { return synchronising_; }

  /// What others keep for the module that this reducer serves; empty at first. As Mesh::attachment().
  [[nodiscard]] std::shared_ptr<void>& attachment() noexcept { return attachment_; }

 private:
  void flush_when_backward_ends();
  void scatter(const at::Tensor& gradient, const Placements& target);
  void finish_scatters(std::int64_t allowed_bytes);

  DistributeOptions options_;
  std::vector<at::Tensor> bucket_;
  std::int64_t bucket_bytes_ = 0;
  /// Gradients whose reduce-scatter is under way, oldest first, and the bytes that their whole values hold.
  std::deque<std::pair<at::Tensor, std::int64_t>> scattering_;
  std::int64_t scattering_bytes_ = 0;
  bool first_bucket_sent_ = false;
  bool flush_queued_ = false;
  bool synchronising_ = true;
  std::shared_ptr<void> attachment_;
};

/// The reducer that distribute() gave to `parameter`; null if it has none.
[[nodiscard]] std::shared_ptr<GradientReducer> reducer_of(const at::Tensor& parameter);

/// The reducer of the module's parameters; null if it is not on a mesh, or nothing in it is trained.
[[nodiscard]] std::shared_ptr<GradientReducer> reducer_of(const torch::nn::Module& module);

/// Where the gradient of a parameter with a reducer should lie.
[[nodiscard]] const Placements& gradient_target(const at::Tensor& parameter);

/// Lets `reducer` know of every gradient of `parameter`, which should lie as `target`.
void attach(const at::Tensor& parameter, std::shared_ptr<GradientReducer> reducer, const Placements& target);

}  // namespace tessera::module
