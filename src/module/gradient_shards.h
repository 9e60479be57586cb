// SPDX-License-Identifier: Apache-2.0
// The gradients of a list of parameters as this rank holds them.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "tessera/mesh/mesh.h"

namespace tessera::module {

/// The tensors without repetitions, in order: tied parameters are listed once per name.
[[nodiscard]] std::vector<at::Tensor> each_once(const std::vector<at::Tensor>& tensors);

/// Gradients on one mesh, or the plain ones.
struct GradientGroup {
  std::optional<Mesh> mesh;
  std::vector<at::Tensor> gradients;
};

/// Defined gradients of `parameters`, by mesh. A parameter that is listed twice counts once.
[[nodiscard]] std::vector<GradientGroup> group_gradients(const std::vector<at::Tensor>& parameters);

/// Sums what is still partial in the storages of the gradients. Collective if there is any.
void reduce_partial(const GradientGroup& group);

/// This rank's parts, sharing memory.
[[nodiscard]] std::vector<at::Tensor> local_parts(const GradientGroup& group);

/// The memory of a rank's part as kernels for real numbers take it: complex numbers as pairs.
[[nodiscard]] at::Tensor real_numbers(const at::Tensor& part);

/// Tells autograd that the gradients were written through their local parts.
void mark_written(const GradientGroup& group);

}  // namespace tessera::module
