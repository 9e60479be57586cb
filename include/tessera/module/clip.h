// SPDX-License-Identifier: Apache-2.0
// The global norm of gradients, and clipping by it, with one reduction for all parameters.
//
// torch::nn::utils::clip_grad_norm_ gives the same numbers on mesh tensors, with one collective per sharded parameter.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace tessera {

/// The norm of all gradients taken as one vector, over every axis of the mesh; 0 without gradients. Tied parameters
/// count once.
///
/// Cost      a pass over the local gradients, one all-reduce of one number per mesh with sharded gradients, one host
/// read Order     collective Throws    ConfigError if `norm_type` is not above 0 (infinity is the largest absolute
/// value)
[[nodiscard]] double gradient_norm(const std::vector<at::Tensor>& parameters, double norm_type = 2.0);

/// Scales the gradients so that their global norm is at most `max_norm`, and returns the norm they had. A norm that is
/// not finite makes every gradient NaN or 0, as in torch.
///
/// Cost      that of gradient_norm, and one more pass if there is something to clip
/// Throws    ConfigError if `max_norm` is negative
/// Checked   module/clip_test: equal to torch::nn::utils::clip_grad_norm_ on one device
double clip_grad_norm_(const std::vector<at::Tensor>& parameters, double max_norm, double norm_type = 2.0);

}  // namespace tessera
