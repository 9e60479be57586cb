// SPDX-License-Identifier: Apache-2.0
// Exponential moving average of weights.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace tessera {

/// Averages of parameters, placed like them: each rank keeps the average of its shard and sends nothing.
///
///   Ema ema(model->parameters(), 0.999);
///   ...  optimizer.step();  ema.update();
///   { const Ema::Swapped averaged(ema);  evaluate(*model); }
class Ema {
 public:
  /// The averages start as the values that the parameters have now. Throws ConfigError if `decay` is not 0 to 1.
  Ema(const std::vector<at::Tensor>& parameters, double decay);

  /// average = decay * average + (1 - decay) * parameter.
  void update();

  /// Each once.
  [[nodiscard]] const std::vector<at::Tensor>& parameters() const noexcept { return parameters_; }
  /// In the order of the parameters.
  [[nodiscard]] const std::vector<at::Tensor>& averages() const noexcept { return averages_; }

  /// While it lives, the parameters hold the averages; then their own values again.
  class Swapped {
   public:
    explicit Swapped(Ema& ema) : ema_(ema) { ema_.swap(); }
    ~Swapped() { ema_.swap(); }
    Swapped(const Swapped&) = delete;
    Swapped& operator=(const Swapped&) = delete;

   private:
    Ema& ema_;
  };

 private:
  void swap();

  std::vector<at::Tensor> parameters_;
  std::vector<at::Tensor> averages_;
  double decay_;
};

}  // namespace tessera
