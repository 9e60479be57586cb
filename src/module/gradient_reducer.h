// SPDX-License-Identifier: Apache-2.0
// Gradients of one module on their way from partial sums to the whole: buckets, started while backward runs.
#pragma once

#include <ATen/core/Tensor.h>

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "tensor/gather_ahead.h"
#include "tessera/module/distribute.h"

namespace tessera::module {

/// What becomes of a parameter whose gradient is complete; empty: the gradient stays.
using WhenComplete = std::function<void(const at::Tensor& parameter)>;

/// Collects gradients in the order in which backward completes them. A bucket's reduction starts when it is full, the
/// rest when backward ends or when somebody reads a gradient. A gradient that is to be sharded is reduce-scattered at
/// once, so that its whole value does not stay. A gradient's storage is pending until then. Who wants to know when a
/// gradient is complete is told as soon as it was waited for: when more than `first_bucket_bytes` are being scattered,
/// when the next bucket has started, or when backward ends.
///
/// Why here and not in c10d::Reducer: a gradient is a partial mesh tensor, so what has to be reduced, over which axes
/// and by whom is known from its placements alone.
class GradientReducer : public std::enable_shared_from_this<GradientReducer> {
 public:
  /// `dtype`: in which gradients are added up, if it is not their own. `ahead`, if given, is told when backward ends.
  explicit GradientReducer(const DistributeOptions& options, std::optional<at::ScalarType> dtype = std::nullopt,
                           std::shared_ptr<tensor::GatherAhead> ahead = nullptr)
      : options_(options), dtype_(dtype), ahead_(std::move(ahead)) {}

  /// Called by the hook of each parameter after its gradient was accumulated; `target` is where it should lie.
  void on_gradient(const at::Tensor& parameter, const Placements& target, const WhenComplete& when_complete);

  /// The same outside of backward, and whether synchronising or not. The caller flushes.
  void reduce(const at::Tensor& parameter, const Placements& target, const WhenComplete& when_complete);
  /// Starts what is waiting, full bucket or not.
  void flush();
  /// flush(), and waits for what is being scattered or awaited by somebody.
  void finish();

  void set_synchronising(bool on) noexcept { synchronising_ = on; }
  [[nodiscard]] bool synchronising() const noexcept { return synchronising_; }

  /// What others keep for the module that this reducer serves; empty at first. As Mesh::attachment().
  [[nodiscard]] std::shared_ptr<void>& attachment() noexcept { return attachment_; }

 private:
  struct Awaited {
    at::Tensor parameter;
    at::Tensor gradient;
    std::int64_t bytes = 0;
    WhenComplete when_complete;
    /// Waits for what is under way, and tells who wants to know.
    void finish() const;
  };

  void convert(const at::Tensor& gradient) const;
  void flush_when_backward_ends();
  /// Forgets what a backward that threw left behind. Nobody is told that those gradients are complete.
  void abandon();
  /// True if a reduce-scatter was started.
  [[nodiscard]] bool scatter(const at::Tensor& parameter, const at::Tensor& gradient, const Placements& target);
  void collect(Awaited awaited);
  void finish_scatters(std::int64_t allowed_bytes);
  void finish_bucket();

  DistributeOptions options_;
  std::optional<at::ScalarType> dtype_;
  std::shared_ptr<tensor::GatherAhead> ahead_;
  std::vector<Awaited> bucket_;
  std::int64_t bucket_bytes_ = 0;
  /// Of the bucket under way, gradients that somebody waits for.
  std::vector<Awaited> reducing_;
  /// Gradients whose reduce-scatter is under way, oldest first, and the bytes that their whole values hold.
  std::deque<Awaited> scattering_;
  std::int64_t scattering_bytes_ = 0;
  bool first_bucket_sent_ = false;
  /// What the callback that flushes holds. LibTorch drops callbacks of a backward that throws without calling them.
  std::weak_ptr<const bool> flush_queued_;
  bool synchronising_ = true;
  std::shared_ptr<void> attachment_;
};

/// The reducer that distribute() gave to `parameter`; null if it has none.
[[nodiscard]] std::shared_ptr<GradientReducer> reducer_of(const at::Tensor& parameter);

/// The reducer of the module's parameters; null if distribute() did not have it.
[[nodiscard]] std::shared_ptr<GradientReducer> reducer_of(const torch::nn::Module& module);

/// Gives the gradient of a parameter with a reducer to it: see GradientReducer::reduce().
void reduce_gradient_of(const at::Tensor& parameter);

/// Lets `reducer` know of every gradient of `parameter`, which should lie as `target`. Takes the place of a reducer
/// that the parameter had.
void attach(const at::Tensor& parameter, std::shared_ptr<GradientReducer> reducer, const Placements& target);

/// Says what becomes of `parameter`, which has a reducer, whenever its gradient is complete.
void set_when_complete(const at::Tensor& parameter, WhenComplete when_complete);

}  // namespace tessera::module
