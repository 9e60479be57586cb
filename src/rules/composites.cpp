// SPDX-License-Identifier: Apache-2.0
// Registers the composites of all families.
#include "rules/composites.h"

#include "tensor/rule.h"
#include "tessera/tensor/mesh_tensor.h"

namespace tessera::tensor {

void register_composites() {
  static torch::Library forward(torch::Library::IMPL, "aten", kMeshKey, __FILE__, __LINE__);
  static torch::Library autograd(torch::Library::IMPL, "aten", c10::DispatchKey::AutogradPrivateUse3, __FILE__,
                                 __LINE__);
  for (torch::Library* library : {&forward, &autograd}) {
    rules::add_attention_composites(*library);
    rules::add_batch_norm_composites(*library);
    rules::add_padding_composites(*library);
    rules::add_packed_sequence_composites(*library);
    rules::add_ctc_composites(*library);
    rules::add_recurrent_composites(*library);
  }
}

}  // namespace tessera::tensor

namespace tessera::rules {

std::vector<std::int64_t> whole_integers(const at::Tensor& tensor) {
  const at::Tensor whole = full(tensor).to(at::kCPU, at::kLong).contiguous();
  return {whole.const_data_ptr<std::int64_t>(), whole.const_data_ptr<std::int64_t>() + whole.numel()};
}

}  // namespace tessera::rules
