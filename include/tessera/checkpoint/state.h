// SPDX-License-Identifier: Apache-2.0
// What of a program a checkpoint holds, under names.
//
//   tessera::State state;
//   state.add("model", *model).add("optimizer", optimizer).add("mesh", mesh).add("step", step);
//   tessera::load("run/step-1200", state);
//   ...
//   tessera::save("run/step-1300", state);
//
// A state holds references: what is added must outlive it, and is read when it is saved. One state serves for all saves of
// a run. A mesh tensor is saved as the one tensor it is, so it does not matter on which mesh, or whether on any, the
// program that loads it runs.
#pragma once

#include <ATen/core/Generator.h>
#include <torch/nn/module.h>
#include <torch/optim/optimizer.h>

#include <concepts>
#include <functional>
#include <string>
#include <vector>

#include "tessera/checkpoint/manifest.h"
#include "tessera/mesh/mesh.h"
#include "tessera/module/apply_in_backward.h"
#include "tessera/module/ema.h"
#include "tessera/module/grad_scaler.h"

namespace tessera {

namespace checkpoint {
class Collector;
/// Says what it has; run once per save and load.
using Part = std::function<void(Collector&)>;
}  // namespace checkpoint

/// Named parts of a program. Every add() throws ConfigError for a name that is empty or taken, and returns the state.
class State {
 public:
  /// Parameters and buffers, as NAME.PATH. Tied ones are saved once.
  State& add(std::string name, torch::nn::Module& module);

  /// The state of each parameter under that parameter's name (NAME.MODULE.PATH.exp_avg), whatever the order of groups,
  /// and the options of each group under its alphabetically first parameter. Adam, AdamW, SGD, Adagrad, RMSprop, what
  /// derives from them, and MasterWeights over any of them.
  /// Order   after the module whose parameters it updates
  /// Throws  ConfigError, when saving or loading, for another optimizer, or a parameter of no module of this state
  State& add(std::string name, torch::optim::Optimizer& optimizer);
  State& add(std::string name, ApplyInBackward& optimizers);

  State& add(std::string name, GradScaler& scaler);
  /// Averages, under the names of their parameters. Order  after the module.
  State& add(std::string name, Ema& ema);
  /// The state of the mesh's random numbers.
  State& add(std::string name, const Mesh& mesh);
  /// LibTorch's random numbers. They depend on how tensors are cut, so they go on as they were on one device only.
  State& add(std::string name, at::Generator generator);
  /// Keeps sizes, dtype and placements; loading writes into it.
  State& add(std::string name, at::Tensor& tensor);
  State& add(std::string name, std::string& text);

  template <class Number>
    requires std::integral<Number> || std::floating_point<Number>
  State& add(std::string name, Number& number) {
    return add_value(
        std::move(name), [&number] { return value_of(number); },
        [&number](const checkpoint::Value& value) { number = static_cast<Number>(std::get<Kept<Number>>(value)); });
  }

  [[nodiscard]] const std::vector<checkpoint::Part>& parts() const noexcept { return parts_; }

 private:
  /// As what a number is kept: the widest type of its kind.
  template <class Number>
  using Kept = std::conditional_t<
      std::same_as<Number, bool>, bool,
      std::conditional_t<std::floating_point<Number>, double,
                         std::conditional_t<std::signed_integral<Number>, std::int64_t, std::uint64_t>>>;
  template <class Number>
  static checkpoint::Value value_of(Number number) {
    return static_cast<Kept<Number>>(number);
  }

  State& add_value(std::string name, std::function<checkpoint::Value()> get,
                   std::function<void(const checkpoint::Value&)> set);
  State& add_part(const std::string& name, checkpoint::Part part);

  std::vector<std::string> names_;
  std::vector<checkpoint::Part> parts_;
};

}  // namespace tessera
