// SPDX-License-Identifier: Apache-2.0
// Does a run over a mesh compute what one device computes? Losses, every gradient and every parameter are compared.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "tessera/mesh/mesh.h"
#include "tessera/tensor/mesh_tensor.h"

namespace tessera::verify {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

/// A training run that can be stepped: on one device with plain tensors, or one rank's view of a run over a mesh.
struct Subject {
  /// Forward and backward of the batch of `step`; returns the loss. Gradients stay in the parameters.
  std::function<double(std::int64_t step)> forward_backward;
  /// Clipping and the optimizer's step.
  std::function<void()> update;
  /// Parameters by name, plain or mesh tensors, always in the same order. Their gradients are read from them.
  std::function<NamedTensors()> parameters;
};

/// What one device computed, step by step. Plain tensors, shared read-only between ranks that are threads.
struct Trace {
  struct Step {
    double loss = 0;
    NamedTensors gradients;   ///< after backward, before clipping; undefined where a parameter got none
    NamedTensors parameters;  ///< after the update
  };
  NamedTensors initial;
  std::vector<Step> steps;
};

/// Runs `subject` and keeps everything. Memory: steps * (parameters + gradients).
[[nodiscard]] Trace record(const Subject& subject, std::int64_t num_steps);

/// Largest deviations from a trace; relative to the largest absolute value of the tensor on one device. A value that is
/// not finite, a missing gradient and a wrong shape deviate infinitely.
struct Deviations {
  double max_loss = 0;
  double max_gradient = 0;
  double max_parameter = 0;
  std::string worst_parameter;  ///< the name behind the larger of the two last

  /// The larger of each.
  void merge(const Deviations& other);
  [[nodiscard]] bool within(double tolerance) const noexcept {
    return max_loss <= tolerance && max_gradient <= tolerance && max_parameter <= tolerance;
  }
};

/// Steps `subject` along `reference` and compares this rank's view of every value: a replica that is stale on one rank
/// is seen by that rank. Collective when the subject runs over a mesh; merge the ranks' results.
[[nodiscard]] Deviations compare(const Subject& subject, const Trace& reference);

/// One line of `tessera verify`.
struct Verdict {
  std::string mesh;
  std::string model;
  std::string precision;
  std::int64_t steps = 0;
  Deviations deviations;
  double tolerance = 0;
  std::map<std::string, std::int64_t> replicated_fallbacks;
  std::map<std::string, GatherCount> gathers;

  [[nodiscard]] bool holds() const noexcept { return deviations.within(tolerance); }
};

/// The verdict as one line of JSON without its newline. Infinite deviations become null.
[[nodiscard]] std::string format_json(const Verdict& verdict);

/// Largest deviation that rounding alone explains, relative.
/// fp64         1e-12
/// fp32         1e-4: sums in another order drift apart by about 1e-7 a step, more under Adam where |gradient| is tiny
/// fp16, bf16   twice `rounding`, what the 16 bits change on one device: a mesh rounds at other places, about as much. That is
///              1e-3 (fp16) to 1e-2 (bf16) of a gradient where activations are smooth (gpt), and up to half of a few entries
///              with ReLU (mlp, cnn), where an activation that rounds to the other side of 0 changes its whole contribution
[[nodiscard]] double default_tolerance(const std::string& precision, double rounding);

/// Every mesh of 1 to `max_ranks` ranks over the canonical axes, axes of size 1 left out; the mesh of one rank first.
[[nodiscard]] std::vector<std::vector<Axis>> all_meshes(int max_ranks);

}  // namespace tessera::verify
