// SPDX-License-Identifier: Apache-2.0
// Composite operators of LibTorch that do not suit a mesh, and what is done instead. Each is written in differentiable
// operators that have rules.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <cstdint>
#include <vector>

namespace tessera::rules {

/// One function per family: each adds its kernels to `library`, which is asked for the mesh's key and for its autograd
/// key: a kernel of the mesh's key alone would take the autograd key's composite away.
void add_attention_composites(torch::Library& library);
void add_batch_norm_composites(torch::Library& library);
void add_padding_composites(torch::Library& library);
void add_packed_sequence_composites(torch::Library& library);
void add_ctc_composites(torch::Library& library);
void add_recurrent_composites(torch::Library& library);
void add_host_reading_composites(torch::Library& library);
void add_embedding_composites(torch::Library& library);
/// For the autograd key alone: below it, as_strided is an operator with a rule.
void add_as_strided_composite(torch::Library& autograd);

/// Numbers that decide about sizes, such as lengths of sequences: whole, on the host.
[[nodiscard]] std::vector<std::int64_t> whole_integers(const at::Tensor& tensor);

}  // namespace tessera::rules
