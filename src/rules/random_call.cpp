// SPDX-License-Identifier: Apache-2.0
// What the kernels of random operators share.
#include "rules/random_call.h"

namespace tessera::rules {

void refuse_what_cannot_be_drawn(const Arguments& call, const at::Tensor& result) {
  call.require(call.find("generator") == nullptr,
               "a torch::Generator knows nothing of the mesh; pass none, and seed the mesh with tessera::manual_seed");
  call.require(!result.is_complex(), "complex numbers are not drawn on a mesh; draw the real and the imaginary part");
}

tensor::Box box_of(const Decision& decision, const Mesh& mesh) {
  return tensor::Box::of(decision.notes, decision.outputs[0], mesh);
}

}  // namespace tessera::rules
