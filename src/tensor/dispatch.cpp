// SPDX-License-Identifier: Apache-2.0
// The boxed kernel behind every operator on mesh tensors: find the specs, decide, redistribute, run locally, wrap.
#include "tensor/dispatch.h"

#include <ATen/core/List.h>
#include <ATen/ops/empty.h>
#include <c10/core/InferenceMode.h>
#include <torch/library.h>

#include <atomic>
#include <mutex>

#include "tensor/decide.h"
#include "tensor/decision_cache.h"
#include "tensor/operator_info.h"
#include "tensor/redistribute.h"
#include "tessera/base/error.h"

namespace tessera::tensor {
namespace {

using Stack = torch::jit::Stack;

/// A tensor among the arguments: in a slot of the stack, or an element of a list in that slot.
struct TensorSlot {
  at::Tensor tensor;
  int argument;
  bool written;
};

/// One call on its way through the dispatcher.
class Call {
 public:
  Call(const c10::OperatorHandle& op, const OperatorInfo& info, Stack& stack)
      : op_(op), info_(info), stack_(stack), base_(stack.size() - info.arguments.size()) {
    collect_tensors();
  }

  void run() {
    if (mesh_ == nullptr) [[unlikely]] {
      throw ShapeError(fmt::format("{}: called for mesh tensors, but none is among its arguments", info_.name));
    }
    refuse_what_has_no_meaning();
    Decision* decision = known_decision();
    if (decision->fallback) MeshRuntime::of(*mesh_).count_fallback(info_.name);
    localise_arguments(*decision);
    if (decision->compute != nullptr) {
      decision->compute(op_, *decision, *mesh_, stack_);
    } else {
      op_.callBoxed(stack_);
    }
    write_back(*decision);
    wrap_outputs(*decision);
  }

 private:
  [[nodiscard]] c10::IValue& slot(std::size_t argument) { return stack_[base_ + argument]; }

  void add_tensor(const at::Tensor& tensor, std::size_t argument) {
    tensors_.push_back({tensor, static_cast<int>(argument), info_.arguments[argument].written});
    if (!is_mesh(tensor)) return;
    const Mesh& mesh = storage_of(tensor).mesh();
    if (mesh_ == nullptr) {
      mesh_ = &mesh;
    } else if (!(*mesh_ == mesh)) [[unlikely]] {
      throw ShapeError(fmt::format("{}: its tensors lie on two meshes, {} and {}; bring them onto one with "
                                   "tessera::full and tessera::distribute",
                                   info_.name, mesh_->to_string(), mesh.to_string()));
    }
  }

  void collect_tensors() {
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

  void refuse_what_has_no_meaning() const {
    // Not check(): its arguments, texts among them, would be made on every call.
    if (info_.random && info_.rule == nullptr && mesh_->size() > 1) [[unlikely]] refuse_random();
    for (const TensorSlot& slot : tensors_) {
      if (slot.written && is_mesh(slot.tensor) && storage_of(slot.tensor).is_view_of_copy) [[unlikely]] {
        throw ShapeError(fmt::format(
            "{}: writes into a view along a sharded dim, which would not reach its base; redistribute the base first, "
            "or write with an out-of-place operator",
            info_.name));
      }
    }
  }

  [[noreturn]] void refuse_random() const {
    throw ShapeError(fmt::format(
        "{} draws random numbers that would differ between the ranks of mesh {}; allowed: dropout, bernoulli, uniform_, "
        "normal_, random_ and their kin (tessera/tensor/random.h), or a plain tensor that is the same on every rank and "
        "tessera::distribute",
        info_.name, mesh_->to_string()));
  }

  [[nodiscard]] static const Placements& placements_of(const TensorSlot& slot) {
    return storage_of(slot.tensor).placements();
  }

  void build_key(CallKey& key) {
    key.add(static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(&info_)));
    for (const TensorSlot& slot : tensors_) {
      if (!slot.tensor.defined()) {
        key.add(-1);
        continue;
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
  }

  [[nodiscard]] OpCall describe_call() {
    OpCall call{op_.schema(), *mesh_, {}, c10::ArrayRef<c10::IValue>(&slot(0), info_.arguments.size()),
                info_.in_place};
    for (const TensorSlot& slot : tensors_) {
      TensorArg argument;
      argument.argument = slot.argument;
      argument.placements = Placements::replicated(mesh_->num_axes());
      if (slot.tensor.defined()) {
        argument.defined = true;
        argument.sizes = slot.tensor.sizes();
        argument.dtype = slot.tensor.scalar_type();
        argument.bytes = slot.tensor.numel() * static_cast<std::int64_t>(slot.tensor.element_size());
        if (is_mesh(slot.tensor)) {
          const MeshStorage& storage = storage_of(slot.tensor);
          argument.placements = storage.placements();
          argument.gathered_at_use = storage.gathered_at_use;
          argument.state_placements = storage.state_placements.get();
        }
      }
      call.tensors.push_back(argument);
    }
    return call;
  }

  Decision* known_decision() {
    CallKey key;
    build_key(key);
    MeshRuntime& runtime = MeshRuntime::of(*mesh_);
    if (Decision* found = runtime.find(key.words())) return found;
    Decision decision = decide(describe_call(), info_.rule);
    decision.gathers_view = info_.is_view && redistributes(decision);
    if (keeps_shards(decision)) runtime.note_sharded(info_.name);
    return &runtime.remember(key.words(), std::move(decision));
  }

  [[nodiscard]] bool redistributes(const Decision& decision) const {
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      if (is_mesh(tensors_[i].tensor) && !(placements_of(tensors_[i]) == decision.inputs[i])) return true;
    }
    return false;
  }

  [[nodiscard]] bool keeps_shards(const Decision& decision) const {
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      if (!is_mesh(tensors_[i].tensor)) continue;
      for (int axis = 0; axis < mesh_->num_axes(); ++axis) {
        const Placement placement = placements_of(tensors_[i])[axis];
        if (placement.is_shard() && decision.inputs[i][axis] == placement) return true;
      }
    }
    return false;
  }

  [[nodiscard]] at::Tensor local_for(const TensorSlot& slot, const Placements& target) const {
    if (!slot.tensor.defined()) return slot.tensor;
    if (is_mesh(slot.tensor)) {
      MeshStorage& storage = storage_of(slot.tensor);
      return storage.placements() == target ? storage.local() : read_as(slot.tensor, target);
    }
    if (target.all_replicate()) return slot.tensor;
    return redistribute_local(slot.tensor, slot.tensor.sizes(), Placements::replicated(mesh_->num_axes()), target,
                              *mesh_);
  }

  void localise_arguments(const Decision& decision) {
    if (!decision.sizes_known || info_.sizes_depend_on_values) sizes_call_.emplace(describe_call());
    if (sizes_call_) keep_arguments();
    std::size_t next = 0;
    for (std::size_t i = 0; i < info_.arguments.size(); ++i) {
      const ArgumentInfo& argument = info_.arguments[i];
      if (argument.kind == ArgumentKind::kScalar) continue;
      if (argument.is_out) {
        if (slot(i).isTensor()) slot(i) = at::empty({0}, slot(i).toTensor().options().device(mesh_->device()));
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

  std::size_t localise_list(std::size_t argument, std::size_t next, const Decision& decision) {
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

  /// Scalars of the call, for working out global output sizes after the stack is gone.
  void keep_arguments() {
    kept_arguments_.assign(stack_.begin() + static_cast<std::ptrdiff_t>(base_), stack_.end());
    sizes_call_->arguments = kept_arguments_;
  }

  /// A plain tensor that was cut for the call becomes whole again: it is replicated, here as elsewhere.
  void write_back_plain(at::Tensor plain, const at::Tensor& local, const Placements& target) const {
    if (!plain.defined() || target.all_replicate()) return;
    const Placements whole = Placements::replicated(mesh_->num_axes());
    plain.copy_(redistribute_local(local, plain.sizes(), target, whole, *mesh_));
  }

  /// Brings what was written into a redistributed copy back to where the tensor lies.
  void write_back(const Decision& decision) {
    for (const auto& [index, local] : passed_) {
      const TensorSlot& slot = tensors_[index];
      const Placements& target = decision.inputs[index];
      if (!is_mesh(slot.tensor)) {
        write_back_plain(slot.tensor, local, target);
        continue;
      }
      MeshStorage& storage = storage_of(slot.tensor);
      if (storage.placements() == target) continue;
      storage.local().copy_(
          redistribute_local(local, slot.tensor.sizes(), target, storage.placements(), storage.mesh()));
    }
  }

  void wrap_outputs(Decision& decision) {
    const std::size_t num_outputs = info_.returned_argument.size();
    const std::size_t first = stack_.size() - num_outputs;
    if (sizes_call_) {
      fill_output_sizes(*sizes_call_, info_.rule, decision,
                        c10::ArrayRef<c10::IValue>(stack_.data() + first, num_outputs));
    }
    std::size_t out = 0;
    for (std::size_t i = 0; i < num_outputs; ++i) {
      c10::IValue& value = stack_[first + i];
      const int returned = info_.returned_argument[i];
      if (returned >= 0 && info_.arguments[static_cast<std::size_t>(returned)].is_out) {
        value = fill_out(outs_[out++], value.toTensor(), decision, i);
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

  [[nodiscard]] at::Tensor wrap_one(const at::Tensor& local, const Decision& decision, std::size_t output) const {
    if (local.layout() != at::kStrided) [[unlikely]] {
      throw ShapeError(fmt::format(
          "{} gives a {} tensor, which is not supported on a mesh tensor; call it on tessera::full of it", info_.name,
          c10::str(local.layout())));
    }
    at::Tensor result = wrap(local, decision.outputs[output], *mesh_, decision.output_sizes[output]);
    note_view(result, decision);
    return result;
  }

  /// An activation goes to where the plan of its parameter wants it: sequence parallelism starts at an embedding.
  [[nodiscard]] at::Tensor wrap_as_planned(const at::Tensor& local, const Decision& decision) const {
    const auto* plan = is_mesh(tensors_[0].tensor) ? storage_of(tensors_[0].tensor).output_plan.get() : nullptr;
    if (plan == nullptr) return wrap_one(local, decision, 0);
    Placements wanted = decision.outputs[0];
    for (int axis = 0; axis < wanted.size(); ++axis) {
      const bool planned = (plan->axes >> static_cast<unsigned>(axis) & 1U) != 0 && mesh_->axis_size(axis) > 1;
      if (planned) wanted[axis] = plan->placements[axis];
    }
    const Sizes& sizes = decision.output_sizes[0];
    for (const Placement& placement : wanted) {
      if (placement.is_shard() && placement.dim >= static_cast<std::int64_t>(sizes.size())) [[unlikely]] {
        throw ShapeError(fmt::format("{}: the plan wants its output as {}, but the output [{}] has {} dims; shard one of "
                                     "them in the plan's `output`",
                                     info_.name, to_string(placement), fmt::join(sizes, ", "), sizes.size()));
      }
    }
    return wrap(redistribute_local(local, sizes, decision.outputs[0], wanted, *mesh_), wanted, *mesh_, sizes);
  }

  void note_view(const at::Tensor& result, const Decision& decision) const {
    if (!info_.is_view) return;
    MeshStorage& storage = storage_of(result);
    storage.is_view_of_copy = decision.gathers_view;
    if (!is_mesh(tensors_[0].tensor)) return;
    if (c10::InferenceMode::is_enabled()) [[unlikely]] keep_keys(result, tensors_[0].tensor);
    const MeshStorage& base = storage_of(tensors_[0].tensor);
    if (base.is_view_of_copy) storage.is_view_of_copy = true;
    if (!decision.gathers_view) storage.gathered_at_use = base.gathered_at_use;
  }

  void wrap_list(c10::IValue& value, const Decision& decision, std::size_t output) const {
    if (value.toListRef().empty() || !value.toListRef()[0].isTensor()) return;
    c10::List<at::Tensor> list;
    for (const c10::IValue& item : value.toListRef()) {
      const at::Tensor& local = item.toTensor();
      if (!decision.elements.empty()) {
        list.push_back(wrap_one(local, decision.elements[list.size()], output));
        continue;
      }
      const Placements& placements = decision.outputs[output];
      Sizes sizes(local.sizes().begin(), local.sizes().end());
      for (const Placement& placement : placements) {
        // Rules keep a list's sharded dim as long as the input's.
        if (placement.is_shard()) {
          sizes[static_cast<std::size_t>(placement.dim)] =
              decision.output_sizes[output][static_cast<std::size_t>(placement.dim)];
        }
      }
      at::Tensor result = wrap(local, placements, *mesh_, sizes);
      note_view(result, decision);
      list.push_back(std::move(result));
    }
    value = std::move(list);
  }

  [[nodiscard]] at::Tensor tensor_of_argument(int argument) const {
    for (const TensorSlot& slot : tensors_) {
      if (slot.argument == argument) return slot.tensor;
    }
    return {};
  }

  /// out= variants: `out` takes the result in its own placements, or all of the result's if it had other sizes. A plain
  /// tensor is replicated, here as elsewhere.
  [[nodiscard]] at::Tensor fill_out(const at::Tensor& out, const at::Tensor& local, const Decision& decision,
                                    std::size_t output) const {
    const Sizes& sizes = decision.output_sizes[output];
    if (!is_mesh(out)) {
      const Placements whole = Placements::replicated(mesh_->num_axes());
      at::Tensor plain = out;
      plain.resize_(sizes).copy_(redistribute_local(local, sizes, decision.outputs[output], whole, *mesh_));
      return out;
    }
    MeshStorage& storage = storage_of(out);
    if (out.sizes() == at::IntArrayRef(sizes) && !storage.placements().any_partial()) {
      storage.local().copy_(
          redistribute_local(local, sizes, decision.outputs[output], storage.placements(), *mesh_));
      return out;
    }
    out.unsafeGetTensorImpl()->shallow_copy_from(wrap_one(local, decision, output).getIntrusivePtr());
    return out;
  }

  const c10::OperatorHandle& op_;
  const OperatorInfo& info_;
  Stack& stack_;
  std::size_t base_;
  c10::SmallVector<TensorSlot, 6> tensors_;
  c10::SmallVector<at::Tensor, 1> outs_;
  c10::SmallVector<std::pair<std::size_t, at::Tensor>, 1> passed_;
  std::optional<OpCall> sizes_call_;
  std::vector<c10::IValue> kept_arguments_;
  const Mesh* mesh_ = nullptr;
};

/// In-place changes of metadata (t_(), squeeze_()): the local tensor changes, and the global one is wrapped anew.
void run_metadata_change(const c10::OperatorHandle& op, const OperatorInfo& info, Stack& stack) {
  const at::Tensor self = stack[stack.size() - info.arguments.size()].toTensor();
  auto functional = c10::Dispatcher::singleton().findSchema({base_name(info.name), op.schema().overload_name()});
  // transpose_ goes with transpose.int.
  if (!functional) functional = c10::Dispatcher::singleton().findSchema({base_name(info.name), "int"});
  if (!functional) {
    throw ShapeError(fmt::format("{} is not supported on a mesh tensor; use its out-of-place form", info.name));
  }
  functional->callBoxed(stack);
  self.unsafeGetTensorImpl()->shallow_copy_from(stack.back().toTensor().getIntrusivePtr());
  stack.back() = self;
}

/// One per operator, so that what is known of the schema is at hand without a look-up.
class MeshKernel final : public c10::OperatorKernel {
 public:
  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
    const OperatorInfo& info = info_of(op);
    if (info.changes_metadata) [[unlikely]] {
      run_metadata_change(op, info, *stack);
      return;
    }
    Call(op, info, *stack).run();
  }

 private:
  const OperatorInfo& info_of(const c10::OperatorHandle& op) {
    std::call_once(once_, [&] { info_ = std::make_unique<OperatorInfo>(op); });
    return *info_;
  }
  std::once_flag once_;
  std::unique_ptr<OperatorInfo> info_;
};

/// detach and alias: the same storage, so that a partial value is still reduced once for all.
class SharingKernel final : public c10::OperatorKernel {
 public:
  void operator()(const c10::OperatorHandle&, c10::DispatchKeySet, Stack* stack) {
    stack->back() = share(stack->back().toTensor());
  }
};

bool shares_storage(const c10::OperatorName& name) { return name.name == "aten::detach" || name.name == "aten::alias"; }

template <class Kernel>
torch::CppFunction boxed() {
  return torch::CppFunction::makeFromBoxedFunctor(std::make_unique<Kernel>());
}

std::string local_name(const c10::OperatorName& name) {
  const std::string base = name.name.substr(name.name.find("::") + 2);
  return name.overload_name.empty() ? base : base + "." + name.overload_name;
}

/// A backend fallback alone would not do: alias kernels (CompositeExplicitAutograd) win over it and recurse.
void register_all(torch::Library& aten) {
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const c10::OperatorName& name : dispatcher.getAllOpNames()) {
    if (!name.name.starts_with("aten::")) continue;
    const auto op = dispatcher.findOp(name);
    if (!op || !op->hasSchema() || op->hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd)) continue;
    if (op->hasKernelForDispatchKey(kMeshKey)) continue;  // a composite of ours
    aten.impl(local_name(name).c_str(), shares_storage(name) ? boxed<SharingKernel>() : boxed<MeshKernel>());
  }
}

/// Operators of other namespaces (a user's TORCH_LIBRARY): gathered, replicated and counted.
void other_namespaces(const c10::OperatorHandle& op, Stack* stack) {
  const OperatorInfo info(op);
  Call(op, info, *stack).run();
}

/// set_data between plain and mesh tensors: the metadata that it copies is all there is. Module::clone needs it.
bool can_take_data_of(const at::Tensor&, const at::Tensor& data) { return data.layout() == at::kStrided; }

}  // namespace

void register_operators() {
  static std::once_flag once;
  std::call_once(once, [] {
    static torch::Library aten(torch::Library::IMPL, "aten", kMeshKey, __FILE__, __LINE__);
    static torch::Library any(torch::Library::IMPL, "_", kMeshKey, __FILE__, __LINE__);
    register_composites();
    register_all(aten);
    static torch::Library autograd(torch::Library::IMPL, "aten", c10::DispatchKey::AutogradPrivateUse3, __FILE__,
                                   __LINE__);
    for (torch::Library* library : {&aten, &autograd}) {
      library->impl("_has_compatible_shallow_copy_type", can_take_data_of);
    }
    any.fallback(torch::CppFunction::makeFromBoxedFunction<&other_namespaces>());
  });
}

}  // namespace tessera::tensor
