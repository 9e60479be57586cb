// SPDX-License-Identifier: Apache-2.0
// What recomputation wants to know of a call in forward, and the call made again.
#include <ATen/core/List.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <utility>

#include "tensor/call.h"
#include "tensor/recompute.h"

namespace tessera::tensor {
namespace {

/// The mesh tensors among `values`, lists element by element.
std::vector<at::Tensor> mesh_tensors(c10::ArrayRef<c10::IValue> values) {
  std::vector<at::Tensor> tensors;
  const auto add = [&](const c10::IValue& value) {
    if (value.isTensor() && is_mesh(value.toTensor())) tensors.push_back(value.toTensor());
  };
  for (const c10::IValue& value : values) {
    if (value.isList()) {
      for (const c10::IValue& item : value.toListRef()) add(item);
    } else {
      add(value);
    }
  }
  return tensors;
}

/// Memory of the layout of a meta tensor, with anything in it.
at::Tensor stand_in(const at::Tensor& local, const Mesh& mesh) {
  return at::empty_strided(local.sizes(), local.strides(), local.options().device(mesh.device()));
}

/// Draws once more what was drawn when the mesh's random numbers stood at `then`.
class DrawingAgain {
 public:
  DrawingAgain(RandomState& state, const RandomState& then) : state_(state), now_(state) { state = then; }
  ~DrawingAgain() { state_ = now_; }
  DrawingAgain(const DrawingAgain&) = delete;
  DrawingAgain& operator=(const DrawingAgain&) = delete;

 private:
  RandomState& state_;
  RandomState now_;
};

/// A call of an operator in forward.
class CallProducer final : public Producer {
 public:
  CallProducer(const c10::OperatorHandle& op, const OperatorInfo& info, c10::ArrayRef<c10::IValue> arguments,
               const Mesh& mesh)
      : op_(op),
        info_(info),
        arguments_(without_tensors(arguments, info)),
        mesh_(mesh),
        random_(MeshRuntime::of(mesh).random),
        keys_(c10::impl::tls_local_dispatch_key_set()) {
    is_view = info.is_view;
    is_expensive = info.expensive;
    name = info.name.c_str();
  }

  /// Of the first run, which found out the sizes of the results.
  void set_decision(const Decision& decision) { decision_ = decision; }

  /// What lies in storages now is what the call reads.
  void read(c10::ArrayRef<TensorSlot> slots) {
    order = MeshRuntime::of(mesh_).recompute.next_order();  // after the reductions that the call asked for
    for (const TensorSlot& slot : slots) {
      Input& input = inputs.emplace_back();
      at::Tensor& operand = operands_.emplace_back(slot.tensor);
      if (!is_mesh(slot.tensor)) continue;
      MeshStorage& storage = storage_of(slot.tensor);
      if (info_.reads_sizes_only) {
        operand = wrap_as(at::empty_like(storage.local(), at::kMeta), storage.placements(), mesh_, slot.tensor.sizes(),
                          slot.tensor.strides());
        continue;
      }
      if (storage.memory == nullptr) storage.memory = std::make_shared<SharedMemory>();
      input = {storage.value, storage.memory, storage.memory->num_writes};
      operand = storage.value == nullptr ? share(slot.tensor) : at::Tensor();
    }
  }

  std::vector<at::Tensor> run() override {
    const c10::impl::ForceDispatchKeyGuard keys(keys_);
    const at::AutoGradMode as_in_forward(true);
    const DrawingAgain drawing(MeshRuntime::of(mesh_).random, random_);
    Call::Stack stack = make_stack();
    const at::Tensor written = info_.in_place ? stack[0].toTensor() : at::Tensor();
    Call(op_, info_, stack).run_again(decision_);
    if (written.defined()) return {storage_of(written).local()};
    std::vector<at::Tensor> shards;
    for (const at::Tensor& output : mesh_tensors(stack)) shards.push_back(storage_of(output).local());
    return shards;
  }

 private:
  struct Argument {
    c10::IValue value;  ///< of a scalar; an empty list for a list of tensors
    std::size_t num_tensors = 0;
  };

  /// Tensors are taken out of the arguments, where they would keep what is to be dropped.
  static std::vector<Argument> without_tensors(c10::ArrayRef<c10::IValue> values, const OperatorInfo& info) {
    std::vector<Argument> arguments;
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (info.arguments[i].kind == ArgumentKind::kScalar) {
        arguments.push_back({values[i]});
      } else if (values[i].isList()) {
        const c10::impl::GenericList empty(values[i].toList().elementType());
        arguments.push_back({empty, values[i].toListRef().size()});
      } else {
        arguments.push_back({c10::IValue(), 1});
      }
    }
    return arguments;
  }

  [[nodiscard]] c10::IValue operand(std::size_t index, bool written) const {
    const std::shared_ptr<Value>& value = inputs[index].value;
    const at::Tensor tensor = value == nullptr ? operands_[index] : value->tensor();
    if (!tensor.defined()) return {};
    if (!is_mesh(tensor)) return tensor;
    MeshStorage& storage = storage_of(tensor);
    // The value may have been sent to other stages before or after this call: nothing is sent again.
    Placements placements = storage.placements();
    const int stages = MeshRuntime::of(mesh_).stages.axis();
    const bool moved = stages >= 0 && !(placements[stages] == decision_.inputs[index][stages]);
    if (moved) placements[stages] = decision_.inputs[index][stages];
    if (!moved && !written && !info_.reads_sizes_only) return tensor;
    // Never into the data of what others read.
    const at::Tensor local = info_.reads_sizes_only ? stand_in(storage.local(), mesh_)
                             : written              ? storage.local().clone()
                                                    : storage.local();
    return wrap_as(local, placements, mesh_, tensor.sizes(), tensor.strides());
  }

  [[nodiscard]] Call::Stack make_stack() const {
    Call::Stack stack;
    std::size_t next = 0;
    for (std::size_t i = 0; i < arguments_.size(); ++i) {
      const auto& [value, num_tensors] = arguments_[i];
      const ArgumentInfo& argument = info_.arguments[i];
      if (argument.kind == ArgumentKind::kScalar) {
        stack.push_back(value);
      } else if (value.isList()) {
        c10::impl::GenericList list(value.toList().elementType());
        for (std::size_t k = 0; k < num_tensors; ++k) list.push_back(operand(next++, argument.written));
        stack.emplace_back(std::move(list));
      } else {
        stack.push_back(operand(next++, argument.written));
      }
    }
    return stack;
  }

  c10::OperatorHandle op_;
  const OperatorInfo& info_;
  std::vector<Argument> arguments_;
  std::vector<at::Tensor> operands_;  ///< those that are no values
  Mesh mesh_;
  Decision decision_;
  RandomState random_;
  c10::impl::LocalDispatchKeySet keys_;
};

}  // namespace

/// A block begins at the first operator that uses one of its parameters together with an activation.
void Call::enter_block(bool runs_here) const {
  const MeshStorage::OfBlock* used = nullptr;
  bool reads_activation = false;
  for (const TensorSlot& slot : tensors_) {
    if (!slot.tensor.defined()) continue;
    if (is_mesh(slot.tensor) && storage_of(slot.tensor).of_block.block != nullptr) {
      if (used == nullptr) used = &storage_of(slot.tensor).of_block;
    } else {
      reads_activation = true;
    }
  }
  RecomputeRuntime& recompute = runtime_->recompute;
  if (used == nullptr || !reads_activation || !recompute.begins(*used->block, used->parameter)) return;
  // What the block is given stays: it is where running again starts.
  for (const TensorSlot& slot : tensors_) {
    if (runs_here && is_mesh(slot.tensor) && storage_of(slot.tensor).value != nullptr) {
      storage_of(slot.tensor).value->keep();
    }
  }
  recompute.begin(used->block, used->parameter);
}

bool Call::reads_parameters_only() const {
  bool any = false;
  for (const TensorSlot& slot : tensors_) {
    if (!slot.tensor.defined()) continue;
    if (!is_mesh(slot.tensor) || storage_of(slot.tensor).of_block.block == nullptr) return false;
    any = true;
  }
  return any;
}

void Call::inherit_block() const {
  if (!reads_parameters_only()) return;
  const MeshStorage::OfBlock& block = storage_of(tensors_[0].tensor).of_block;
  for (const at::Tensor& output : outputs()) storage_of(output).of_block = block;
}

std::vector<at::Tensor> Call::outputs() const {
  const std::size_t num_outputs = info_.returned_argument.size();
  return mesh_tensors(c10::ArrayRef<c10::IValue>(&stack_[stack_.size() - num_outputs], num_outputs));
}

bool Call::is_worth_recording(const Decision& decision) const {
  const RecomputeRuntime& recompute = runtime_->recompute;
  if (!recompute.records() || reads_parameters_only()) return false;
  if (recompute.keeps_expensive() && info_.expensive) return false;
  if (decision.fallback || info_.gives_values || info_.sizes_depend_on_values || info_.has_out) return false;
  std::size_t num_written = 0;
  for (const ArgumentInfo& argument : info_.arguments) num_written += argument.written ? 1 : 0;
  return num_written == 0 || (num_written == 1 && info_.in_place && info_.arguments[0].kind == ArgumentKind::kTensor);
}

/// A tensor that is written must be a value that nobody else sees: what it was before can then be made again.
bool Call::can_be_recorded() const {
  if (!info_.in_place) return true;
  if (!is_mesh(tensors_[0].tensor)) return false;
  MeshStorage& storage = storage_of(tensors_[0].tensor);
  return storage.value != nullptr && storage.value->can_be_made_again() && !storage.is_view &&
         storage.local().storage().use_count() == 1;
}

void Call::run_recorded(Decision& decision) {
  enter_block(/*runs_here=*/true);
  if (!is_worth_recording(decision)) {
    compute(decision);
    inherit_block();
    return;
  }
  const auto producer =
      std::make_shared<CallProducer>(op_, info_, c10::ArrayRef<c10::IValue>(&slot(0), info_.arguments.size()), *mesh_);
  localise_arguments(decision);
  if (!can_be_recorded()) {
    run_localised(decision);
    return;
  }
  producer->read(tensors_);
  if (info_.in_place) {
    // What is in the storage from now on is another value, in memory that nobody has read.
    MeshStorage& storage = storage_of(tensors_[0].tensor);
    std::exchange(storage.value, nullptr)->leave_storage({});
    storage.memory = nullptr;
  }
  run_localised(decision);
  producer->set_decision(decision);
  for (const at::Tensor& output : outputs()) runtime_->recompute.add(output, producer);
}

}  // namespace tessera::tensor
