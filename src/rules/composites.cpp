// SPDX-License-Identifier: Apache-2.0
// Registers the composites of all families, and holds those of none: they read numbers on the host, by pointers that a
// mesh tensor does not have, or write them into a plain tensor. They run in the form that their operators have for
// gradients and for other devices.
#include "rules/composites.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/max_pool1d_with_indices.h>
#include <ATen/ops/tensor_split.h>

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
    rules::add_host_reading_composites(*library);
    rules::add_embedding_composites(*library);
  }
  rules::add_as_strided_composite(autograd);
}

}  // namespace tessera::tensor

namespace tessera::rules {
namespace {

// max_pool1d: without a gradient LibTorch pools by a loop of its own.
at::Tensor max_pool1d(const at::Tensor& self, at::IntArrayRef kernel, at::IntArrayRef stride, at::IntArrayRef padding,
                      at::IntArrayRef dilation, bool ceil_mode) {
  return std::get<0>(at::max_pool1d_with_indices(self, kernel, stride, padding, dilation, ceil_mode));
}

// tensor_split.tensor_indices_or_sections(self, sections, dim): a scalar says how many parts, a row where they end.
std::vector<at::Tensor> split_by_tensor(const at::Tensor& self, const at::Tensor& sections, std::int64_t dim) {
  TORCH_CHECK(sections.dim() <= 1, "tensor_split: sections or indices of ", sections.dim(), " dims; allowed: 0 and 1");
  const std::vector<std::int64_t> numbers = whole_integers(sections);
  return sections.dim() == 0 ? at::tensor_split(self, numbers[0], dim) : at::tensor_split(self, numbers, dim);
}

// one_hot(self, num_classes): compared with all classes, so that it lies as the classes do.
at::Tensor one_hot(const at::Tensor& self, std::int64_t num_classes) {
  TORCH_CHECK(self.scalar_type() == at::kLong, "one_hot: classes are of ", self.scalar_type(), "; allowed: int64");
  TORCH_CHECK(self.numel() > 0 || num_classes > 0, "one_hot: no class is there to count from; pass num_classes");
  if (num_classes < 0) {
    num_classes = self.max().item<std::int64_t>() + 1;
  } else if (self.numel() > 0) {
    TORCH_CHECK(self.ge(0).logical_and(self.lt(num_classes)).all().item<bool>(),
                "one_hot: a class is below 0 or not below num_classes = ", num_classes);
  }
  return self.unsqueeze(-1).eq(at::arange(num_classes, self.options())).to(at::kLong);
}

/// 0 1 2 ... along `dim` of `like`, to be broadcast.
at::Tensor positions_along(const at::Tensor& like, std::int64_t dim) {
  std::vector<std::int64_t> sizes(static_cast<std::size_t>(like.dim()), 1);
  sizes[static_cast<std::size_t>(dim)] = like.size(dim);
  return at::arange(like.size(dim), like.options().dtype(at::kLong)).view(sizes);
}

// fill_diagonal_(self, value, wrap): by strides in LibTorch. A tall matrix that wraps goes on after each square and a row.
at::Tensor& fill_diagonal(at::Tensor& self, const at::Scalar& value, bool wrap) {
  TORCH_CHECK(self.dim() >= 2, "fill_diagonal_: a tensor of ", self.dim(), " dims; allowed: 2 and more");
  const bool is_matrix = self.dim() == 2;
  const at::Tensor rows = positions_along(self, 0);
  if (is_matrix && wrap) {
    const std::int64_t width = self.size(1);
    return self.masked_fill_(rows.mul(width).add(positions_along(self, 1)).remainder(width + 1).eq(0), value);
  }
  at::Tensor mask = rows.eq(positions_along(self, 1));
  for (std::int64_t dim = 1; dim < self.dim(); ++dim) {
    TORCH_CHECK(is_matrix || self.size(dim) == self.size(0), "fill_diagonal_: dims of ", self.size(0), " and ",
                self.size(dim), "; allowed beyond matrices: dims of one size");
    mask = mask.logical_and(rows.eq(positions_along(self, dim)));
  }
  return self.masked_fill_(mask, value);
}

}  // namespace

void add_host_reading_composites(torch::Library& library) {
  library.impl("max_pool1d", max_pool1d);
  library.impl("tensor_split.tensor_indices_or_sections", split_by_tensor);
  library.impl("one_hot", one_hot);
  library.impl("fill_diagonal_", fill_diagonal);
}

std::vector<std::int64_t> whole_integers(const at::Tensor& tensor) {
  const at::Tensor whole = full(tensor).to(at::kCPU, at::kLong).contiguous();
  return {whole.const_data_ptr<std::int64_t>(), whole.const_data_ptr<std::int64_t>() + whole.numel()};
}

}  // namespace tessera::rules
