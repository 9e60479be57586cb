// SPDX-License-Identifier: Apache-2.0
// From arguments to a decision, and to local arguments.
#include "tensor/call.h"

#include <ATen/core/List.h>
#include <ATen/ops/empty.h>

#include "tensor/decide.h"
#include "tensor/journal.h"
#include "tensor/redistribute.h"
#include "tessera/base/error.h"
#include "tessera/tensor/mesh_tensor.h"

namespace tessera::tensor {
namespace {

const Placements& placements_of(const TensorSlot& slot) { return storage_of(slot.tensor).placements(); }

}  // namespace

void Call::run() {
  prepare();
  if (staged_ && info_.rule != nullptr && info_.rule->per_element) {
    run_each_element();
  } else {
    run_as_decided();
  }
}

void Call::prepare() {
  if (mesh_ == nullptr) [[unlikely]] {
    throw ShapeError(fmt::format("{}: called for mesh tensors, but none is among its arguments", info_.name));
  }
  refuse_what_has_no_meaning();
  runtime_ = &MeshRuntime::of(*mesh_);
  staged_ = runtime_->stages.axis() >= 0 && has_staged_tensors();
}

void Call::run_as_decided() {
  Decision& decision = *known_decision();
  if (decision.fallback) runtime_->count_fallback(info_.name);
  if (runtime_->stages.conductor().journal != nullptr) [[unlikely]]
    keep_what_changes(decision);
  if (staged_) {
    run_on_stages(decision);
  } else {
    run_here(decision);
  }
}

/// Of what was there before the step, so that the step can be taken back.
void Call::keep_what_changes(const Decision& decision) const {
  const auto keep = [this](const at::Tensor& tensor) {
    const bool is_older = is_mesh(tensor) && storage_of(tensor).made_in_step < runtime_->stages.step_number();
    if (is_older) runtime_->stages.conductor().journal->keep(tensor);
  };
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    const bool is_partial = is_mesh(tensors_[i].tensor) && placements_of(tensors_[i]).any_partial();
    if (tensors_[i].written || (is_partial && !(placements_of(tensors_[i]) == decision.inputs[i]))) keep(tensors_[i].tensor);
  }
  for (const at::Tensor& out : outs_) keep(out);
}

void Call::run_again(Decision& decision) {
  runtime_ = &MeshRuntime::of(*mesh_);
  compute(decision);
}

void Call::run_here(Decision& decision) {
  if (runtime_->recompute.watches()) [[unlikely]] {
    run_recorded(decision);
  } else {
    compute(decision);
  }
}

void Call::compute(Decision& decision) {
  localise_arguments(decision);
  run_localised(decision);
}

void Call::run_localised(Decision& decision) {
  try {
    if (decision.compute != nullptr) {
      decision.compute(op_, decision, *mesh_, stack_);
    } else {
      op_.callBoxed(stack_);
    }
  } catch (c10::Error& error) {
    error.add_context(global_context());
    throw;
  }
  write_back(decision);
  wrap_outputs(decision);
}

/// What LibTorch says of a shard, in the words of the program.
std::string Call::global_context() const {
  std::vector<std::string> operands;
  for (const TensorSlot& slot : tensors_) {
    if (slot.tensor.defined()) operands.push_back(describe(slot.tensor));
  }
  return fmt::format("{} of {}; sizes and indices before this are those of the shards of rank {}", info_.name,
                     fmt::join(operands, "; "), mesh_->rank());
}

void Call::add_tensor(const at::Tensor& tensor, std::size_t argument) {
  tensors_.push_back({tensor, static_cast<int>(argument), info_.arguments[argument].written});
  if (!is_mesh(tensor)) return;
  const Mesh& mesh = storage_of(tensor).mesh();
  if (mesh_ == nullptr) {
    mesh_ = &mesh;
  } else if (!(*mesh_ == mesh)) [[unlikely]] {
    throw ShapeError(
        fmt::format("{}: its tensors lie on two meshes, {} and {}; bring them onto one with "
                    "tessera::full and tessera::distribute",
                    info_.name, mesh_->to_string(), mesh.to_string()));
  }
}

void Call::collect_tensors() {
  for (std::size_t i = 0; i < info_.arguments.size(); ++i) {
    const ArgumentInfo& argument = info_.arguments[i];
    if (argument.kind == ArgumentKind::kScalar) continue;
    const c10::IValue& value = slot(i);
    if (argument.is_out) {
      outs_.push_back(value.isTensor() ? value.toTensor() : at::Tensor());
      // Plain operands and a mesh tensor to fill: the mesh is that of the result.
      if (mesh_ == nullptr && is_mesh(outs_.back())) mesh_ = &storage_of(outs_.back()).mesh();
    } else if (value.isTensor()) {
      add_tensor(value.toTensor(), i);
    } else if (value.isList()) {
      for (const c10::IValue& item : value.toListRef()) add_tensor(item.isTensor() ? item.toTensor() : at::Tensor(), i);
    } else {
      add_tensor(at::Tensor(), i);
    }
  }
}

void Call::refuse_what_has_no_meaning() const {
  // Not check(): its arguments, texts among them, would be made on every call.
  if (info_.random && info_.rule == nullptr && mesh_->size() > 1) [[unlikely]]
    refuse_random();
  for (const TensorSlot& slot : tensors_) {
    if (slot.written) refuse_write_into_unknown(slot.tensor);
  }
  for (const at::Tensor& out : outs_) refuse_write_into_unknown(out);
}

void Call::refuse_write_into_unknown(const at::Tensor& tensor) const {
  if (!is_mesh(tensor) || storage_of(tensor).copy == nullptr || storage_of(tensor).copy->shows) [[likely]]
    return;
  throw ShapeError(fmt::format(
      "{}: writes into a view that shows other numbers than its base has (a conjugate, or the negative), and would not reach "
      "it; write into the base: base.copy_(values.conj())",
      info_.name));
}

void Call::refuse_random() const {
  throw ShapeError(fmt::format(
      "{} draws random numbers that would differ between the ranks of mesh {}; allowed: dropout, bernoulli, uniform_, "
      "normal_, random_ and their kin (tessera/tensor/random.h), or a plain tensor that is the same on every rank and "
      "tessera::distribute",
      info_.name, mesh_->to_string()));
}

void Call::build_key(CallKey& key) {
  key.add(static_cast<std::int64_t>(info_.id));
  for (const TensorSlot& slot : tensors_) {
    if (!slot.tensor.defined()) {
      key.add(-1);
      continue;
    }
    if (info_.reads_strides) [[unlikely]] {
      key.add(slot.tensor.strides());
      key.add(slot.tensor.storage_offset());
    }
    const std::int64_t dtype = static_cast<std::int64_t>(slot.tensor.scalar_type()) << 16;
    if (!is_mesh(slot.tensor)) {
      key.add(dtype);
      key.add(slot.tensor.sizes());
      continue;
    }
    const MeshStorage& storage = storage_of(slot.tensor);
    const bool has_state = storage.state_placements != nullptr;
    key.add(dtype | (static_cast<std::int64_t>(storage.gathered_at_use) << 2) | (has_state ? 2 : 0) | 1);
    key.add(slot.tensor.sizes());
    key.add(storage.placements());
    if (has_state) key.add(*storage.state_placements);
  }
  for (std::size_t i = 0; i < info_.arguments.size(); ++i) {
    if (info_.arguments[i].kind == ArgumentKind::kScalar) key.add_argument(slot(i));
  }
  if (staged_) add_stages_to_key(key);
}

OpCall Call::describe_call() {
  OpCall call{op_.schema(), *mesh_, {}, arguments(), info_.in_place};
  for (const TensorSlot& slot : tensors_) {
    TensorArg argument;
    argument.argument = slot.argument;
    argument.placements = Placements::replicated(mesh_->num_axes());
    if (slot.tensor.defined()) {
      argument.defined = true;
      argument.sizes = slot.tensor.sizes();
      argument.strides = slot.tensor.strides();
      argument.offset = slot.tensor.storage_offset();
      argument.dtype = slot.tensor.scalar_type();
      argument.bytes = slot.tensor.numel() * static_cast<std::int64_t>(slot.tensor.element_size());
      if (is_mesh(slot.tensor)) {
        const MeshStorage& storage = storage_of(slot.tensor);
        argument.placements = storage.placements();
        argument.gathered_at_use = storage.gathered_at_use;
        argument.state_placements = storage.state_placements.get();
        argument.stage = storage.stage;
        argument.on_mesh = true;
      }
    }
    call.tensors.push_back(argument);
  }
  if (staged_) describe_stages(call);
  return call;
}

Decision* Call::known_decision() {
  CallKey key;
  build_key(key);
  if (Decision* found = runtime_->find(key.words())) return found;
  Decision decision = decide(describe_call(), info_.rule);
  decision.gathers_view = info_.is_view && redistributes(decision);
  decision.hides_strides = hides_strides(decision);
  if (staged_) decision.key = key.hash();
  if (keeps_shards(decision)) runtime_->note_sharded(info_.name);
  return &runtime_->remember(key.words(), std::move(decision));
}

bool Call::redistributes(const Decision& decision) const {
  // Being sent to another stage does not change what a shard is.
  const int stage_axis = runtime_->stages.axis();
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    if (!is_mesh(tensors_[i].tensor)) continue;
    for (int axis = 0; axis < mesh_->num_axes(); ++axis) {
      if (axis != stage_axis && !(placements_of(tensors_[i])[axis] == decision.inputs[i][axis])) return true;
    }
  }
  return false;
}

bool Call::keeps_shards(const Decision& decision) const {
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    if (!is_mesh(tensors_[i].tensor)) continue;
    for (int axis = 0; axis < mesh_->num_axes(); ++axis) {
      const Placement placement = placements_of(tensors_[i])[axis];
      if (placement.is_shard() && decision.inputs[i][axis] == placement) return true;
    }
  }
  return false;
}

/// Reducing a partial sum inside its storage gives it other memory. What is written and has views, or is one, stays in
/// theirs: the result is brought home as a partial sum.
bool Call::keeps_memory(const TensorSlot& slot) {
  return slot.written && storage_of(slot.tensor).family.shares_memory();
}

/// A gather that no plan asked for. Asked only where something is sent anyway.
bool Call::gathers(const MeshStorage& storage, const Placements& target) const {
  for (int axis = 0; axis < target.size(); ++axis) {
    const bool at_use = (storage.gathered_at_use >> static_cast<unsigned>(axis) & 1U) != 0;
    if (storage.placements()[axis].is_shard() && target[axis].is_replicate() && !at_use) return true;
  }
  return false;
}

at::Tensor Call::local_for(const TensorSlot& slot, const Placements& target) const {
  if (!slot.tensor.defined()) return slot.tensor;
  if (is_mesh(slot.tensor)) {
    MeshStorage& storage = storage_of(slot.tensor);
    const bool as_it_lies = storage.placements() == target;
    // A view of memory that is not filled yet is one, too.
    if (as_it_lies && info_.is_view && storage.deferred() != nullptr) return storage.local_unfinished();
    if (as_it_lies) return storage.local();
    const bool counts = gathers(storage, target);
    const auto bytes_before = counts ? static_cast<std::int64_t>(storage.local().nbytes()) : 0;
    at::Tensor local = keeps_memory(slot) ? redistribute_local(storage.local(), slot.tensor.sizes(), slot.tensor.strides(),
                                                               storage.placements(), target, *mesh_)
                                          : read_for_use(slot.tensor, target);
    if (counts) runtime_->count_gather(info_.name, static_cast<std::int64_t>(local.nbytes()) - bytes_before);
    return local;
  }
  if (target.all_replicate()) return slot.tensor;
  return redistribute_local(slot.tensor, slot.tensor.sizes(), slot.tensor.strides(),
                            Placements::replicated(mesh_->num_axes()), target, *mesh_);
}

void Call::localise_arguments(Decision& decision) {
  work_out_layout(decision, arguments());
  work_out_views(decision);
  if (!decision.sizes_known || info_.sizes_depend_on_values) sizes_call_.emplace(describe_call());
  if (sizes_call_) keep_arguments();
  std::size_t next = 0;
  for (std::size_t i = 0; i < info_.arguments.size(); ++i) {
    const ArgumentInfo& argument = info_.arguments[i];
    if (argument.kind == ArgumentKind::kScalar) continue;
    if (argument.is_out) {
      // Kept: LibTorch reads references to several outs after it took them off the stack.
      local_outs_.emplace_back();
      if (!slot(i).isTensor()) continue;
      local_outs_.back() = at::empty({0}, slot(i).toTensor().options().device(mesh_->device()));
      slot(i) = local_outs_.back();
    } else if (slot(i).isList()) {
      next = localise_list(i, next, decision);
    } else {
      at::Tensor local = local_for(tensors_[next], decision.inputs[next]);
      if (tensors_[next].written) passed_.push_back({next, local});
      if (tensors_[next].tensor.defined()) slot(i) = std::move(local);
      ++next;
    }
  }
  for (const auto& [argument, value] : decision.edits) slot(static_cast<std::size_t>(argument)) = value;
}

std::size_t Call::localise_list(std::size_t argument, std::size_t next, const Decision& decision) {
  const auto type = slot(argument).toList().elementType();
  c10::impl::GenericList list(type);
  const std::size_t count = slot(argument).toListRef().size();
  for (std::size_t k = 0; k < count; ++k, ++next) {
    at::Tensor local = local_for(tensors_[next], decision.inputs[next]);
    if (tensors_[next].written) passed_.push_back({next, local});
    list.push_back(local.defined() ? c10::IValue(std::move(local)) : c10::IValue());
  }
  slot(argument) = std::move(list);
  return next;
}

void Call::keep_arguments() {
  kept_arguments_.assign(stack_.begin() + static_cast<std::ptrdiff_t>(base_), stack_.end());
  sizes_call_->arguments = kept_arguments_;
}

}  // namespace tessera::tensor
