// SPDX-License-Identifier: Apache-2.0
// Where backward adds up what two users of a value say about its gradient. Autograd writes in place if a tensor is the only
// user of its storage, as autograd sees it. But a view of a mesh tensor has a storage of its own that shares memory with its
// base, which others may still read; and gradients of a value that several pipeline stages used lie on several: their sum
// belongs on the earliest, not where the first of them happens to be.
#pragma once

#include <ATen/core/Tensor.h>

namespace tessera::tensor {

/// True between two nodes of a backward pass: autograd itself calls, to add up gradients.
[[nodiscard]] bool autograd_adds_up();

/// Gradients that lie on different pipeline stages; the same on every rank.
[[nodiscard]] bool lie_on_different_stages(const at::Tensor& sum, const at::Tensor& gradient);

/// sum += gradient, on the earlier of their stages.
void add_up_across_stages(const at::Tensor& sum, const at::Tensor& gradient);

/// Gives a tensor that is about to be written memory of its own, if it shares it.
void own_memory(const at::Tensor& sum);

}  // namespace tessera::tensor
