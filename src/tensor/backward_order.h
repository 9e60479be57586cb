// SPDX-License-Identifier: Apache-2.0
// The order in which autograd goes back through the stages of a pipeline.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "tensor/forward_stages.h"

namespace tessera::tensor {

/// Of the nodes that are ready, autograd runs the one that was made last; from now on one of the latest stage first. So
/// backward is done with a stage before it comes to an earlier one, in whichever order forward made their nodes: a loss
/// that ends with a term of the first stage would take backward there at once, and a rank that runs stage after stage
/// would wait for its turn with work in hand that others need.
/// Returns the leaves that backward adds gradients to.
std::vector<at::Tensor> go_back_stage_by_stage(const at::Tensor& root, const ForwardStages& forward);

}  // namespace tessera::tensor
