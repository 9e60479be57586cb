// SPDX-License-Identifier: Apache-2.0
// Where backward adds up what two users of a value say about its gradient.
#pragma once

#include <ATen/core/Tensor.h>

namespace tessera::tensor {

/// True between two nodes of a backward pass: autograd itself calls, to add up gradients.
[[nodiscard]] bool autograd_adds_up();

/// False if `sum += gradient` may write in place. Autograd writes in place if a tensor is the only user of its storage, as
/// autograd sees it. But a view of a mesh tensor has a storage of its own that shares memory with its base, which others
/// may still read; and gradients of a value that several pipeline stages used lie on several: their sum belongs on the
/// earliest, not where the first of them happens to be.
[[nodiscard]] bool needs_other_memory(const at::Tensor& sum, const at::Tensor& gradient);

/// sum += gradient, with other memory, and in another place if need be.
void add_up(const at::Tensor& sum, const at::Tensor& gradient);

}  // namespace tessera::tensor
