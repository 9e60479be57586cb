// SPDX-License-Identifier: Apache-2.0
// A row of the battery, trained on one device or on a mesh; and how far two results are apart.
#pragma once

#include <map>
#include <string>

#include "battery/battery.h"
#include "tessera/mesh/mesh.h"
#include "tessera/pipeline/step.h"

namespace tessera::battery {

/// What must be equal, by name.
struct Trained {
  std::map<std::string, Tensor> losses;
  std::map<std::string, Tensor> gradients;
  std::map<std::string, Tensor> values;  ///< parameters and buffers
};

using PlanOf = std::function<Plan(const torch::nn::Module&)>;

/// Two steps of SGD. Plain tensors, on every rank.
[[nodiscard]] Trained train_alone(const Row& row, const StepOptions& options);
[[nodiscard]] Trained train_on(const Row& row, const Mesh& mesh, const PlanOf& plan, const StepOptions& options);

/// What is not equal to 1e-12, the worst of it in one line; empty if everything is. Deviations are relative to the tensor's
/// largest absolute value; of what is nearly zero beside the others (the gradient of an attention's key bias), to a
/// hundredth of theirs.
[[nodiscard]] std::string difference(const Trained& expected, const Trained& found);

}  // namespace tessera::battery
