// SPDX-License-Identifier: Apache-2.0
// Mesh tensors of a module become plain ones, in place.
#include "tessera/module/gather.h"

#include "tessera/tensor/mesh_tensor.h"

namespace tessera {
namespace {

at::Tensor whole(const at::Tensor& tensor) { return full(tensor.detach()).clone(); }

void gather_in_place(const at::Tensor& tensor) {
  if (!tensor.defined() || !is_mesh_tensor(tensor)) return;
  const at::Tensor& gradient = tensor.grad();
  const at::Tensor whole_gradient = gradient.defined() ? whole(gradient) : at::Tensor();
  tensor.mutable_grad() = at::Tensor();
  tensor.unsafeGetTensorImpl()->shallow_copy_from(whole(tensor).getIntrusivePtr());
  if (whole_gradient.defined()) tensor.mutable_grad() = whole_gradient;
}

}  // namespace

void gather(torch::nn::Module& module) {
  for (const at::Tensor& parameter : module.parameters()) gather_in_place(parameter);
  for (const at::Tensor& buffer : module.buffers()) gather_in_place(buffer);
}

}  // namespace tessera
