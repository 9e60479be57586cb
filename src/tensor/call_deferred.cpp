// SPDX-License-Identifier: Apache-2.0
// The split backward of zero-bubble schedules (Qi et al. 2023, arXiv:2401.10241), without touching the module: matrix
// products and convolutions of a backward pass give memory that is filled later. The gradient of an input is read by the
// next operator, which fills it at once. The gradient of a weight is read by nobody but the sum in the parameter's .grad,
// which waits with it.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>

#include "tensor/call.h"
#include "tensor/deferred.h"

namespace tessera::tensor {
namespace {

/// Memory of that many bytes that is not there yet.
at::Tensor unfilled(at::IntArrayRef sizes, const at::Tensor& like) {
  at::Tensor tensor = at::empty({0}, like.options());
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  tensor.storage().unsafeGetStorageImpl()->set_nbytes(tensor.nbytes());
  return tensor;
}

/// Gives `target` the memory of `value`.
void copy_into(const at::Tensor& target, const at::Tensor& value) {
  const at::Tensor dense = value.contiguous();
  const bool exclusive = dense.storage().use_count() == 1 && dense.storage_offset() == 0;
  const at::Tensor own = exclusive ? dense : dense.clone();
  c10::StorageImpl* from = own.storage().unsafeGetStorageImpl();
  c10::StorageImpl* to = target.storage().unsafeGetStorageImpl();
  to->set_nbytes(from->nbytes());
  to->set_data_ptr_noswap(from->set_data_ptr(c10::DataPtr(nullptr, from->device())));
}

/// Everything a local call needs, and the memory its outputs go to; undefined: not wanted.
struct LocalCall {
  c10::OperatorHandle op;
  torch::jit::Stack arguments;
  std::vector<at::Tensor> outputs;

  void operator()() {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    op.callBoxed(arguments);
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      if (outputs[i].defined()) copy_into(outputs[i], arguments[arguments.size() - outputs.size() + i].toTensor());
    }
  }
};

std::shared_ptr<Deferred> pending_of(const at::Tensor& tensor) {
  return is_mesh(tensor) ? storage_of(tensor).deferred() : nullptr;
}

bool is_dense(const ResultShape& shape) {
  std::int64_t expected = 1;
  for (std::size_t dim = shape.sizes.size(); dim-- > 0;) {
    if (shape.sizes[dim] != 1 && shape.strides[dim] != expected) return false;
    expected *= shape.sizes[dim];
  }
  return shape.offset == 0;
}

}  // namespace

bool Call::can_wait(Decision& decision) const {
  if (runtime_->stages.conductor().deferred == nullptr || info_.deferral == Deferral::kNone) return false;
  if (decision.compute != nullptr || decision.fallback || !knows_results(decision)) return false;
  if (info_.deferral == Deferral::kSum) return sums_what_waits(decision);
  for (const OutputShape& output : decision.shape->outputs) {
    if (output.tensors[0].defined && !is_dense(output.tensors[0])) return false;
  }
  return true;
}

/// sum += gradient, both where they lie, and one of them not computed yet.
bool Call::sums_what_waits(const Decision& decision) const {
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    if (!is_mesh(tensors_[i].tensor)) return false;
    const MeshStorage& storage = storage_of(tensors_[i].tensor);
    if (storage.copy != nullptr || !(storage.placements() == decision.inputs[i])) return false;
  }
  return pending_of(tensors_[0].tensor) != nullptr || pending_of(tensors_[1].tensor) != nullptr;
}

void Call::run_later(Decision& decision) {
  switch (info_.deferral) {
    case Deferral::kSum:
      return sum_later();
    case Deferral::kProduct:
      return multiply_later(decision);
    case Deferral::kConvolution:
      return convolve_later(decision);
    case Deferral::kNone:
      break;
  }
}

void Call::wait_with(const std::shared_ptr<Deferred>& work) const {
  runtime_->stages.conductor().deferred->push_back(work);
}

void Call::sum_later() {
  const at::Tensor sum = tensors_[0].tensor;
  const auto work = std::make_shared<Deferred>(
      [earlier = pending_of(sum), addend = pending_of(tensors_[1].tensor), sum_local = storage_of(sum).local_unfinished(),
       local = storage_of(tensors_[1].tensor).local_unfinished(), alpha = stack_.back().toScalar()] {
        if (earlier != nullptr) earlier->run();
        if (addend != nullptr) addend->run();
        const at::AutoDispatchBelowADInplaceOrView below_autograd;
        at::Tensor(sum_local).add_(local, alpha);
      });
  storage_of(sum).defer(work);
  wait_with(work);
  stack_.erase(stack_.begin() + static_cast<std::ptrdiff_t>(base_), stack_.end());
  stack_.emplace_back(sum);
}

void Call::multiply_later(Decision& decision) {
  localise_arguments(decision);
  Stack arguments(stack_.begin() + static_cast<std::ptrdiff_t>(base_), stack_.end());
  stack_.erase(stack_.begin() + static_cast<std::ptrdiff_t>(base_), stack_.end());
  const at::Tensor& left = arguments[0].toTensor();
  const at::Tensor product = unfilled({left.size(0), arguments[1].toTensor().size(1)}, left);
  const auto work = std::make_shared<Deferred>(LocalCall{op_, std::move(arguments), {product}});
  stack_.emplace_back(product);
  wrap_outputs(decision);
  storage_of(stack_.back().toTensor()).defer(work);
  wait_with(work);
}

/// convolution_backward(grad_output, input, weight, bias_sizes, ..., output_mask): input now, weight and bias later.
void Call::convolve_later(Decision& decision) {
  localise_arguments(decision);
  Stack arguments(stack_.begin() + static_cast<std::ptrdiff_t>(base_), stack_.end());
  stack_.erase(stack_.begin() + static_cast<std::ptrdiff_t>(base_), stack_.end());
  const c10::List<bool> mask = arguments.back().toBoolList();
  const auto masked = [&](bool input, bool weight, bool bias) {
    Stack stack = arguments;
    stack.back() = c10::List<bool>({input, weight, bias});
    return stack;
  };
  at::Tensor input_gradient;
  if (mask[0]) {
    Stack now = masked(true, false, false);
    op_.callBoxed(now);
    input_gradient = now[now.size() - 3].toTensor();
  }
  const at::Tensor& output_gradient = arguments[0].toTensor();
  const at::Tensor weight = mask[1] ? unfilled(arguments[2].toTensor().sizes(), output_gradient) : at::Tensor();
  const at::Tensor bias = mask[2] ? unfilled({output_gradient.size(1)}, output_gradient) : at::Tensor();
  const auto work =
      std::make_shared<Deferred>(LocalCall{op_, masked(false, mask[1], mask[2]), {at::Tensor(), weight, bias}});
  for (const at::Tensor& output : {input_gradient, weight, bias}) stack_.emplace_back(output);
  wrap_outputs(decision);
  for (std::size_t i = 1; i <= 2; ++i) {
    const at::Tensor& gradient = stack_[stack_.size() - i].toTensor();
    if (gradient.defined()) storage_of(gradient).defer(work);
  }
  wait_with(work);
}

}  // namespace tessera::tensor
