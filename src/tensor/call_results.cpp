// SPDX-License-Identifier: Apache-2.0
// From local results to mesh tensors.
#include <ATen/core/List.h>
#include <c10/core/AutogradState.h>
#include <c10/core/InferenceMode.h>

#include "tensor/call.h"
#include "tensor/decide.h"
#include "tensor/gather_ahead.h"
#include "tensor/redistribute.h"
#include "tessera/base/error.h"

namespace tessera::tensor {
namespace {

/// False if an operator that gives a view on one device had to copy here.
bool shares_memory(const MeshStorage& view, const MeshStorage& base) {
  const at::Tensor& of_view = view.local_unfinished();
  const at::Tensor& of_base = base.local_unfinished();
  if (!of_base.defined() || of_view.is_meta() || of_base.is_meta() || of_base.numel() == 0) return true;
  return of_view.storage().unsafeGetStorageImpl() == of_base.storage().unsafeGetStorageImpl();
}

}  // namespace

void Call::write_back_plain(at::Tensor plain, const at::Tensor& local, const Placements& target) const {
  if (!plain.defined() || target.all_replicate()) return;
  const Placements whole = Placements::replicated(mesh_->num_axes());
  plain.copy_(redistribute_local(local, plain.sizes(), plain.strides(), target, whole, *mesh_));
}

void Call::write_back(const Decision& decision) {
  for (const auto& [index, local] : passed_) {
    const TensorSlot& slot = tensors_[index];
    const Placements& target = decision.inputs[index];
    if (!is_mesh(slot.tensor)) {
      write_back_plain(slot.tensor, local, target);
      continue;
    }
    MeshStorage& storage = storage_of(slot.tensor);
    forget_gathered(slot.tensor);
    storage.note_write();
    if (!(storage.placements() == target)) {
      storage.local().copy_(redistribute_local(local, slot.tensor.sizes(), slot.tensor.strides(), target,
                                               storage.placements(), storage.mesh()));
    }
    if (storage.copy != nullptr) [[unlikely]] write_to_base(storage);
  }
}

void Call::wrap_outputs(Decision& decision) {
  const std::size_t num_outputs = info_.returned_argument.size();
  const std::size_t first = stack_.size() - num_outputs;
  if (sizes_call_) {
    fill_output_sizes(*sizes_call_, info_.rule, decision,
                      c10::ArrayRef<c10::IValue>(stack_.data() + first, num_outputs));
    if (!decision.hides_strides && hides_strides(decision)) {
      decision.hides_strides = true;
      work_out_layout(decision, kept_arguments_);
    }
  }
  std::size_t out = 0;
  for (std::size_t i = 0; i < num_outputs; ++i) {
    c10::IValue& value = stack_[first + i];
    const int returned = info_.returned_argument[i];
    if (returned >= 0 && info_.arguments[static_cast<std::size_t>(returned)].is_out) {
      value = fill_out(outs_[out], decision.compute == nullptr ? local_outs_[out] : value.toTensor(), decision, i);
      ++out;
    } else if (returned >= 0 && value.isTensor()) {
      value = tensor_of_argument(returned);
    } else if (value.isTensor() && value.toTensor().defined()) {
      value = i == 0 && info_.rule != nullptr && info_.rule->follows_plan_output
                  ? wrap_as_planned(value.toTensor(), decision)
                  : wrap_one(value.toTensor(), decision, i);
    } else if (value.isList()) {
      wrap_list(value, decision, i);
    }
  }
}

at::Tensor Call::wrap_one(const at::Tensor& local, const Decision& decision, std::size_t output,
                          std::size_t element) const {
  if (local.layout() != at::kStrided) [[unlikely]] {
    throw ShapeError(
        fmt::format("{} gives a {} tensor, which is not supported on a mesh tensor; call it on tessera::full of it",
                    info_.name, c10::str(local.layout())));
  }
  at::Tensor result = wrap_result(local, decision.outputs[output], decision.output_sizes[output], output, element);
  note_view(result, decision, element);
  note_cast(result);
  return result;
}

/// An activation goes to where the plan of its parameter wants it: sequence parallelism starts at an embedding.
Placements Call::output_placements(const Decision& decision, std::size_t output, at::IntArrayRef sizes) const {
  Placements wanted = decision.outputs[output];
  if (output != 0 || info_.rule == nullptr || !info_.rule->follows_plan_output) return wanted;
  const auto* plan = is_mesh(tensors_[0].tensor) ? storage_of(tensors_[0].tensor).output_plan.get() : nullptr;
  if (plan == nullptr) return wanted;
  for (int axis = 0; axis < wanted.size(); ++axis) {
    const bool planned = (plan->axes >> static_cast<unsigned>(axis) & 1U) != 0 && mesh_->axis_size(axis) > 1;
    if (planned) wanted[axis] = plan->placements[axis];
  }
  return canonical(wanted, sizes, *mesh_);
}

at::Tensor Call::wrap_as_planned(const at::Tensor& local, const Decision& decision) const {
  const Placements wanted = output_placements(decision, 0, decision.output_sizes[0]);
  if (wanted == decision.outputs[0]) return wrap_one(local, decision, 0);
  const Sizes& sizes = decision.output_sizes[0];
  for (const Placement& placement : wanted) {
    if (placement.is_shard() && placement.dim >= static_cast<std::int64_t>(sizes.size())) [[unlikely]] {
      throw ShapeError(
          fmt::format("{}: the plan wants its output as {}, but the output [{}] has {} dims; shard one of "
                      "them in the plan's `output`",
                      info_.name, to_string(placement), fmt::join(sizes, ", "), sizes.size()));
    }
  }
  const at::Tensor made = wrap_one(local, decision, 0);
  return wrap_as(redistribute_local(local, sizes, made.strides(), decision.outputs[0], wanted, *mesh_), wanted, *mesh_,
                 sizes, made.strides());
}

void Call::note_view(const at::Tensor& result, const Decision& decision, std::size_t element) const {
  if (!info_.is_view) return;
  // Else backward of a write into a view asks for it by strides, which mean nothing for a shard.
  c10::AutogradState::get_tls_state().set_view_replay_enabled(true);
  MeshStorage& storage = storage_of(result);
  storage.is_view = true;
  if (!is_mesh(tensors_[0].tensor)) return;
  if (c10::InferenceMode::is_enabled()) [[unlikely]]
    keep_keys(result, tensors_[0].tensor);
  MeshStorage& base = storage_of(tensors_[0].tensor);
  storage.count_writes_with(tensors_[0].tensor);
  if (base.copy != nullptr || decision.gathers_view || !shares_memory(storage, base)) [[unlikely]]
    note_copy(storage, decision, element);
  if (!decision.gathers_view) storage.made_in_step = base.made_in_step;
  const bool shares_memory_of_sum = storage.placements().any_partial() || base.family.is_or_was_shared();
  if (shares_memory_of_sum && !decision.gathers_view) storage.family.join(base.family);
  if (const auto deferred = base.deferred()) storage.defer(deferred);
  storage.memory = base.memory;
  if (!decision.gathers_view) {
    storage.gathered_at_use = base.gathered_at_use;
    storage.gather_ahead = base.gather_ahead;
  }
  storage.stage.pinned = base.stage.pinned;
}

/// A view that was made of gathered data, or of such a view.
void Call::note_copy(MeshStorage& storage, const Decision& decision, std::size_t element) const {
  const at::Tensor& operand = tensors_[0].tensor;
  const ViewCopy* of_copy = storage_of(operand).copy.get();
  auto copy = std::make_unique<ViewCopy>();
  copy->base = of_copy == nullptr ? share(operand) : of_copy->base;
  if (views_ != nullptr && views_->views.size() > element) copy->shows = views_->views[element];
  copy->gathered = decision.inputs[0];
  for (int axis = 0; of_copy != nullptr && axis < copy->gathered.size(); ++axis) {
    if (!copy->gathered[axis].is_replicate()) copy->gathered[axis] = of_copy->gathered[axis];
  }
  copy->made = storage.placements();
  copy->seen = storage.num_writes();
  storage.copy = std::move(copy);
}

/// A parameter in another dtype, as autocast makes it, is gathered at use as the parameter is.
void Call::note_cast(const at::Tensor& result) const {
  if (!info_.is_cast || !is_mesh(tensors_[0].tensor)) return;
  const MeshStorage& from = storage_of(tensors_[0].tensor);
  if (storage_of(result).placements() == from.placements()) storage_of(result).gathered_at_use = from.gathered_at_use;
}

void Call::wrap_list(c10::IValue& value, const Decision& decision, std::size_t output) const {
  if (value.toListRef().empty() || !value.toListRef()[0].isTensor()) return;
  c10::List<at::Tensor> list;
  for (const c10::IValue& item : value.toListRef()) {
    const at::Tensor& local = item.toTensor();
    if (!decision.elements.empty()) {
      list.push_back(wrap_one(local, decision.elements[list.size()], output, list.size()));
      continue;
    }
    const Placements& placements = decision.outputs[output];
    Sizes sizes(local.sizes().begin(), local.sizes().end());
    for (const Placement& placement : placements) {
      // A list's sharded dim is as long as the input's, or as the rule says, in all of its tensors.
      if (placement.is_shard()) {
        sizes[static_cast<std::size_t>(placement.dim)] =
            decision.output_sizes[output][static_cast<std::size_t>(placement.dim)];
      }
    }
    at::Tensor result = wrap_result(local, placements, sizes, output, list.size());
    note_view(result, decision, list.size());
    list.push_back(std::move(result));
  }
  value = std::move(list);
}

at::Tensor Call::fill_out(const at::Tensor& out, const at::Tensor& local, const Decision& decision,
                          std::size_t output) const {
  const Sizes& sizes = decision.output_sizes[output];
  if (!is_mesh(out)) {
    const Placements whole = Placements::replicated(mesh_->num_axes());
    at::Tensor plain = out;
    plain.resize_(sizes);
    plain.copy_(redistribute_local(local, sizes, plain.strides(), decision.outputs[output], whole, *mesh_));
    return out;
  }
  MeshStorage& storage = storage_of(out);
  if (out.sizes() == at::IntArrayRef(sizes) && !storage.placements().any_partial()) {
    storage.local().copy_(redistribute_local(local, sizes, out.strides(), decision.outputs[output], storage.placements(),
                                             *mesh_));
    storage.note_write();
    if (storage.copy != nullptr) write_to_base(storage);
    return out;
  }
  out.unsafeGetTensorImpl()->shallow_copy_from(wrap_one(local, decision, output).getIntrusivePtr());
  return out;
}

at::Tensor Call::tensor_of_argument(int argument) const {
  for (const TensorSlot& slot : tensors_) {
    if (slot.argument == argument) return slot.tensor;
  }
  return {};
}

}  // namespace tessera::tensor
