// SPDX-License-Identifier: Apache-2.0
// Strides and offsets of results where the shards do not show them.
#include <ATen/EmptyTensor.h>
#include <ATen/core/List.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>

#include <algorithm>

#include "tensor/call.h"

namespace tessera::tensor {
namespace {

/// A tensor without data that lies in memory as the whole would on one device.
at::Tensor whole_on_meta(const at::Tensor& tensor) {
  if (!tensor.defined()) return tensor;
  const at::TensorOptions options = at::TensorOptions(at::kMeta).dtype(tensor.dtype());
  if (tensor.storage_offset() == 0) return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  const auto elements = static_cast<std::int64_t>(at::detail::computeStorageNbytes(
      tensor.sizes(), tensor.strides(), /*itemsize_bytes=*/1, static_cast<std::size_t>(tensor.storage_offset())));
  return at::empty({elements}, options).as_strided(tensor.sizes(), tensor.strides(), tensor.storage_offset());
}

c10::IValue on_meta(const c10::IValue& value, ArgumentKind kind) {
  if (value.isDevice()) return c10::Device(c10::kMeta);
  if (kind == ArgumentKind::kScalar || value.isNone()) return value;
  if (value.isTensor()) return whole_on_meta(value.toTensor());
  c10::impl::GenericList list(value.toList().elementType());
  for (const c10::IValue& item : value.toListRef()) {
    list.push_back(item.isTensor() ? c10::IValue(whole_on_meta(item.toTensor())) : item);
  }
  return list;
}

/// Inner dims are cut: an index along an outer one is further from the start in the whole than in a shard.
bool has_other_strides(const at::Tensor& tensor) {
  MeshStorage& storage = storage_of(tensor);
  const bool was_dropped = !storage.local_unfinished().defined();
  const at::Tensor& local = was_dropped ? storage.local() : storage.local_unfinished();
  for (std::int64_t dim = 0; dim < tensor.dim(); ++dim) {
    if (tensor.size(dim) > 1 && tensor.stride(dim) != local.stride(dim)) return true;
  }
  return false;
}

}  // namespace

bool Call::hides_strides(const Decision& decision) const {
  for (const TensorSlot& slot : tensors_) {
    if (!is_mesh(slot.tensor)) continue;
    if (strides_are_ambiguous(storage_of(slot.tensor).placements(), *mesh_, slot.tensor.sizes())) return true;
  }
  for (std::size_t i = 0; decision.sizes_known && i < decision.output_sizes.size(); ++i) {
    const Sizes& sizes = decision.output_sizes[i];  // none: this output is not defined
    if (!sizes.empty() && strides_are_ambiguous(decision.outputs[i], *mesh_, sizes)) return true;
  }
  return false;
}

/// What one device does to strides is asked of the operator itself, on tensors without data; most operators can say.
void Call::work_out_layout(Decision& decision, c10::ArrayRef<c10::IValue> arguments) {
  const bool is_unclear =
      decision.hides_strides ||
      (info_.is_view && !decision.gathers_view && is_mesh(tensors_[0].tensor) && has_other_strides(tensors_[0].tensor));
  if (!is_unclear) [[likely]]
    return;
  if (info_.in_place || info_.has_out || info_.gives_values || info_.sizes_depend_on_values) return;
  c10::SmallVector<std::int64_t, 24> operands;
  for (const TensorSlot& slot : tensors_) {
    if (!slot.tensor.defined()) continue;
    operands.append(slot.tensor.strides().begin(), slot.tensor.strides().end());
    operands.push_back(slot.tensor.storage_offset());
  }
  if (decision.layout == nullptr || !std::equal(operands.begin(), operands.end(), decision.layout->operands.begin(),
                                                decision.layout->operands.end())) {
    decision.layout = std::make_shared<const ResultLayout>(
        ResultLayout{std::vector<std::int64_t>(operands.begin(), operands.end()), layouts_of_whole(arguments)});
  }
  layout_ = decision.layout;
}

/// What part of its base a view shows that gets memory of its own.
void Call::work_out_views(Decision& decision) {
  if (!info_.is_view || !is_mesh(tensors_[0].tensor)) return;
  const ViewCopy* of_copy = storage_of(tensors_[0].tensor).copy.get();
  if (of_copy == nullptr && !decision.gathers_view && !decision.hides_strides) [[likely]]
    return;
  if (of_copy != nullptr && !of_copy->shows) return;
  const Strided base = of_copy == nullptr ? Strided::of(tensors_[0].tensor) : *of_copy->shows;
  if (decision.views == nullptr || !(decision.views->base == base)) {
    const c10::ArrayRef<c10::IValue> arguments(&slot(0), info_.arguments.size());
    decision.views = std::make_shared<const ShownViews>(
        ShownViews{base, views_of(op_, arguments, base, tensors_[0].tensor.scalar_type())});
  }
  views_ = decision.views;
}

std::vector<OutputShape> Call::layouts_of_whole(c10::ArrayRef<c10::IValue> arguments) const {
  try {
    Stack stack;
    for (std::size_t i = 0; i < info_.arguments.size(); ++i) stack.push_back(on_meta(arguments[i], info_.arguments[i].kind));
    op_.callBoxed(stack);
    return shapes_of(stack, info_.name);
  } catch (const std::exception&) {  // NOLINT(bugprone-empty-catch): strides are those that the shard suggests, then
    return {};
  }
}

const ResultShape* Call::known_layout(at::IntArrayRef sizes, std::size_t output, std::size_t element) const {
  if (layout_ == nullptr || layout_->outputs.size() <= output) return nullptr;
  const std::vector<ResultShape>& tensors = layout_->outputs[output].tensors;
  if (tensors.size() <= element || at::IntArrayRef(tensors[element].sizes) != sizes) return nullptr;
  return &tensors[element];
}

/// Where a shard does not show how the whole lies, it is brought to lie as the whole would on one device: kernels expect
/// that inputs with equal strides lie alike. Where nobody can say, not even of a partial sum, it lies row-major, so that all
/// ranks agree. A view lies as its base does.
at::Tensor Call::wrap_result(at::Tensor local, const Placements& placements, at::IntArrayRef sizes, std::size_t output,
                             std::size_t element) const {
  const ResultShape* known = known_layout(sizes, output, element);
  const bool is_row_major = known == nullptr && !info_.is_view && !shows_row_major(local) &&
                            (layout_ != nullptr || strides_are_ambiguous(placements, *mesh_, sizes));
  if (known == nullptr && !is_row_major) return wrap(std::move(local), placements, *mesh_, sizes);
  const Sizes strides = is_row_major ? tensor::contiguous_strides(sizes) : known->strides;
  if (!info_.is_view) local = in_order(local, memory_order(sizes, strides));
  return wrap_as(std::move(local), placements, *mesh_, sizes, strides, known == nullptr ? 0 : known->offset);
}

}  // namespace tessera::tensor
