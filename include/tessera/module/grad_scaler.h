// SPDX-License-Identifier: Apache-2.0
// Dynamic loss scaling for fp16: torch.amp.GradScaler, which the C++ frontend lacks, for plain and mesh parameters.
#pragma once

#include <torch/optim/optimizer.h>

#include <cstdint>
#include <map>

namespace tessera {

/// Multiplies the loss so that small fp16 gradients do not vanish, divides the gradients again before they are used,
/// and leaves out a step whose gradients are not finite on any rank.
///
///   scaler.scale(loss).backward();
///   scaler.unscale_(optimizer);                       // only if gradients are looked at, for clipping say
///   clip_grad_norm_(model->parameters(), 1.0);
///   scaler.step(optimizer);
///   scaler.update();
///
/// Order     scale, [unscale_,] step per optimizer; then one update; collective for mesh parameters
/// Source    semantics and defaults of torch.amp.GradScaler
class GradScaler {
 public:
  struct Options {
    double init_scale = 65536.0;
    double growth_factor = 2.0;
    double backoff_factor = 0.5;
    /// Steps with finite gradients in a row until the scale grows.
    std::int64_t growth_interval = 2000;
    /// If false, everything passes through unchanged.
    bool enabled = true;
  };
  /// What a checkpoint must hold.
  struct State {
    double scale = 0;
    std::int64_t growth_tracker = 0;
    friend bool operator==(const State&, const State&) = default;
  };

  /// Throws ConfigError for a growth factor of at most 1, a backoff factor of at least 1, or a scale not above 0.
  explicit GradScaler(const Options& options);
  GradScaler() : GradScaler(Options()) {}

  /// loss * scale. Differentiable.
  [[nodiscard]] at::Tensor scale(const at::Tensor& loss) const;

  /// Divides the gradients of the optimizer's parameters by the scale, once per update. Cost: one pass over the local
  /// gradients, one all-reduce of one number per mesh. fp16 gradients of MasterWeights are fp32 from then on. Throws
  /// Error if called twice, or for fp16 gradients of another optimizer: there, parameters stay fp32 and autocast
  /// computes in fp16.
  void unscale_(torch::optim::Optimizer& optimizer);

  /// Unscales if that has not been done; steps if all gradients are finite on all ranks. Returns whether it did.
  bool step(torch::optim::Optimizer& optimizer);

  /// Shrinks the scale if some optimizer's gradients were not finite, else counts towards growth.
  void update();

  [[nodiscard]] double get_scale() const noexcept { return options_.enabled ? state_.scale : 1.0; }
  [[nodiscard]] const State& state() const noexcept { return state_; }
  void load_state(const State& state) { state_ = state; }
  [[nodiscard]] bool enabled() const noexcept { return options_.enabled; }

 private:
  struct Progress {
    bool found_inf = false;
    bool stepped = false;
  };

  Options options_;
  State state_;
  std::map<const torch::optim::Optimizer*, Progress> progress_;
};

}  // namespace tessera
