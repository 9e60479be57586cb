// SPDX-License-Identifier: Apache-2.0
// Random operators on a part of a tensor that no placement describes.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <vector>

#include "tensor/box.h"

namespace tessera::rules {

/// True for the in-place operators whose numbers depend on the element's place alone.
[[nodiscard]] bool draws_by_element(const c10::OperatorHandle& op);

/// Runs such an operator for `local`, which is the part `box` of the tensor that is written; counts as one draw of
/// `mesh`. Tensors among the `arguments` are parts, too. `local` undefined: this rank has no part, and only counts.
void draw_part(const c10::OperatorHandle& op, const std::vector<c10::IValue>& arguments, const at::Tensor& local,
               const tensor::Box& box, const Mesh& mesh);

}  // namespace tessera::rules
