// SPDX-License-Identifier: Apache-2.0
// Calls whose tensors lie on pipeline stages: run here or elsewhere, with the same tensors to show for it.
#include <ATen/SequenceNumber.h>
#include <ATen/core/List.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/graph_task.h>

#include "tensor/call.h"
#include "tensor/redistribute.h"
#include "tessera/base/error.h"

namespace tessera::tensor {
namespace {

bool in_backward() { return torch::autograd::get_current_graph_task_id() != -1; }

/// Where the operator ran whose gradient is being worked out; 0: there is none, or it is not known.
StageSet forward_stages(StageRuntime& stages) {
  const auto node = torch::autograd::get_current_node();
  return node == nullptr ? 0 : stages.forward().of(node->sequence_nr());
}

/// A tensor was written after copies of it were sent, or a step failed, in which not all ranks came to send it.
bool has_stale_copies(const at::Tensor& tensor, const StageRuntime& stages) {
  const MeshStorage::OnStages& stage = storage_of(tensor).stage;
  if (stage.home == 0) return false;
  if (stage.copied_after_failure != stages.last_failure()) return true;
  return !tensor.is_inference() &&
         tensor.unsafeGetTensorImpl()->version_counter().current_version() != stage.copied_version;
}

/// Stages whose data of a tensor are written.
StageSet written_stages(const at::Tensor& tensor, const StageMap& map) {
  if (!is_mesh(tensor)) return map.all();
  const MeshStorage& storage = storage_of(tensor);
  return storage.stage.home != 0 ? storage.stage.home : map.set_of(storage.placements());
}

bool is_staged(const at::Tensor& tensor, int axis) {
  if (!is_mesh(tensor)) return false;
  const MeshStorage& storage = storage_of(tensor);
  return storage.stage.pinned != 0 || !storage.placements()[axis].is_replicate();
}

}  // namespace

bool Call::has_staged_tensors() const {
  const int axis = runtime_->stages.axis();
  for (const TensorSlot& slot : tensors_) {
    const bool stale = is_mesh(slot.tensor) && has_stale_copies(slot.tensor, runtime_->stages);
    if (stale) runtime_->stages.forget_copies(slot.tensor);
  }
  for (const TensorSlot& slot : tensors_) {
    if (is_staged(slot.tensor, axis)) return true;
  }
  for (const at::Tensor& out : outs_) {
    if (is_staged(out, axis)) return true;
  }
  return false;
}

/// What decides where a call runs, and strides: ranks without data must know those of the results.
void Call::add_stages_to_key(CallKey& key) const {
  const StageMap& map = runtime_->stages.map();
  key.add(in_backward() ? 1 : 0);
  key.add(static_cast<std::int64_t>(forward_stages(runtime_->stages)));
  for (const TensorSlot& slot : tensors_) {
    if (!slot.tensor.defined()) continue;
    key.add(slot.tensor.strides());
    if (!is_mesh(slot.tensor)) continue;
    const MeshStorage::OnStages& stage = storage_of(slot.tensor).stage;
    key.add(static_cast<std::int64_t>(stage.pinned));
    key.add(static_cast<std::int64_t>(stage.home));
  }
  for (const at::Tensor& out : outs_) key.add(static_cast<std::int64_t>(written_stages(out, map)));
}

void Call::describe_stages(OpCall& call) const {
  const StageMap& map = runtime_->stages.map();
  call.stages = &map;
  call.in_backward = in_backward();
  call.forward_stages = forward_stages(runtime_->stages);
  for (const TensorSlot& slot : tensors_) {
    if (slot.written && slot.tensor.defined()) call.written |= written_stages(slot.tensor, map);
  }
  for (const at::Tensor& out : outs_) call.written |= written_stages(out, map);
}

void Call::bring_operands(StageSet stages) const {
  for (const TensorSlot& slot : tensors_) {
    if (is_mesh(slot.tensor)) runtime_->stages.bring(slot.tensor, stages);
  }
}

/// What is on its way to another stage must arrive as it was when it was sent.
void Call::finish_sends_of_written() const {
  for (const TensorSlot& slot : tensors_) {
    if (!slot.written || !is_mesh(slot.tensor)) continue;
    const at::Tensor& local = storage_of(slot.tensor).local();
    if (!local.is_meta()) runtime_->stages.finish_sends_of(local);
  }
}

/// What keeps pipeline schedules from running the micro-batches of this program in their order.
void Call::note_hindrances(const Decision& decision) const {
  const StageRuntime::Conductor& conductor = runtime_->stages.conductor();
  StageRuntime::Hindrances& seen = runtime_->stages.hindrances();
  const bool backward = in_backward();
  const bool is_in_the_way = !conductor.in_schedule_order || backward || conductor.await_turn;
  if (differs_each_time() && is_in_the_way) {
    refuse_what_is_new();
    (backward ? seen.tells_in_backward : seen.tells_in_forward) = info_.name;
  }
  if (backward) return;
  const StageMap& map = runtime_->stages.map();
  ForwardOrder& order = runtime_->stages.forward_order();
  for (const TensorSlot& slot : tensors_) {
    if (!is_mesh(slot.tensor)) continue;
    if (storage_of(slot.tensor).stage.pinned != 0) continue;
    const StageSet lies = map.set_of(storage_of(slot.tensor).placements());
    const bool is_of_later_stage = (lies & decision.stages) == 0 && lowest(lies) > highest(decision.stages);
    if (!is_of_later_stage && !order.waits(map, lies, decision.stages)) continue;
    refuse_what_is_new();
    seen.goes_back = info_.name;
  }
  order.enter(map, decision.stages);
}

void Call::run_on_stages(Decision& decision) {
  StageRuntime& stages = runtime_->stages;
  note_hindrances(decision);
  const StageSet here = stages.map().stages_here() & decision.stages;
  if (here != 0 && stages.conductor().await_turn) stages.conductor().await_turn(decision.stages);
  if (at::GradMode::is_enabled()) stages.forward().note(at::sequence_number::peek(), decision.stages);
  bring_operands(decision.stages);
  if (here != 0) {
    const std::uint64_t draws_before = runtime_->random.num_draws;
    compute_or_share_failure(decision);
    agree_on_results(decision, static_cast<std::int64_t>(runtime_->random.num_draws - draws_before));
  } else {
    skip(decision);
  }
  stages.progress();
}

/// Ranks that wait for the shape of what failed throw the same error instead.
void Call::compute_or_share_failure(Decision& decision) {
  const std::uint64_t draws_before = runtime_->random.num_draws;
  try {
    compute_now_or_later(decision);
  } catch (const CommunicationError&) {
    throw;
  } catch (...) {
    runtime_->random.num_draws = draws_before;
    share_failure(decision, std::current_exception());
    throw;
  }
}

void Call::share_failure(Decision& decision, const std::exception_ptr& failure) const {
  StageRuntime& stages = runtime_->stages;
  if (differs_each_time() || knows_results(decision)) return;
  // Where it runs again, all ranks hear of the failure.
  refuse_what_is_new();
  if (stages.map().first_rank(decision.stages) == mesh_->coordinate(stages.axis())) {
    stages.tell_failure(decision.key, failure, *mesh_);
    return;
  }
  // What the first rank tells must not wait for the next call of this kind. This rank's own error is the one to throw.
  try {
    decision.shape = stages.learn_shape(decision.key, decision.stages, *mesh_);
  } catch (const std::exception&) {
    return;
  }
}

void Call::compute_now_or_later(Decision& decision) {
  if (can_wait(decision)) {
    run_later(decision);
    return;
  }
  finish_sends_of_written();
  run_here(decision);
}

bool Call::differs_each_time() const { return info_.gives_values || info_.sizes_depend_on_values; }

/// The first rank that computes tells all others what came out; those that compute too take over its strides.
void Call::agree_on_results(Decision& decision, std::int64_t num_draws) {
  StageRuntime& stages = runtime_->stages;
  if (stages.map().first_rank(decision.stages) != mesh_->coordinate(stages.axis())) {
    take_strides(*learn_results(decision));
    return;
  }
  if (!differs_each_time() && knows_results(decision)) return;
  const std::size_t num_outputs = info_.returned_argument.size();
  const c10::ArrayRef<c10::IValue> outputs(stack_.data() + (stack_.size() - num_outputs), num_outputs);
  auto shape = std::make_shared<const CallShape>(CallShape{shapes_of(outputs, info_.name), num_draws});
  if (differs_each_time()) {
    stages.tell_values(*shape, *mesh_);
  } else {
    refuse_what_is_new();
    decision.shape = shape;
    stages.tell_shape(decision.key, std::move(shape), *mesh_);
  }
}

bool Call::knows_results(Decision& decision) const {
  if (decision.shape == nullptr) decision.shape = runtime_->stages.known_shape(decision.key);
  return decision.shape != nullptr;
}

/// What the first rank that computes tells, or has told.
std::shared_ptr<const CallShape> Call::learn_results(Decision& decision) const {
  StageRuntime& stages = runtime_->stages;
  if (differs_each_time()) return std::make_shared<const CallShape>(stages.learn_values(decision.stages, *mesh_));
  if (!knows_results(decision)) {
    refuse_what_is_new();
    decision.shape = stages.learn_shape(decision.key, decision.stages, *mesh_);
  }
  return decision.shape;
}

/// Whoever waited for it would wait for a rank that may be waiting for him.
void Call::refuse_what_is_new() const {
  if (!runtime_->stages.conductor().in_schedule_order) return;
  throw NewInSchedule(
      fmt::format("{}: pipeline stages meet it for the first time in a step that runs in schedule order, with operands "
                  "[{}]; allowed: what the first step with these batch sizes ran, or the transports thread and shm on "
                  "CPUs, where the step runs again. Let no sizes and no branches differ between steps, or use "
                  "microbatches = 1",
                  info_.name, describe_operands()));
}

std::string Call::describe_operands() const {
  std::vector<std::string> words;
  for (const TensorSlot& slot : tensors_) {
    if (slot.tensor.defined()) words.push_back(fmt::format("[{}]", fmt::join(slot.tensor.sizes(), ", ")));
  }
  return fmt::format("{}", fmt::join(words, ", "));
}

void Call::take_strides(const CallShape& shape) const {
  const std::size_t first = stack_.size() - shape.outputs.size();
  for (std::size_t i = 0; i < shape.outputs.size(); ++i) {
    const c10::IValue& value = stack_[first + i];
    if (info_.returned_argument[i] >= 0 || shape.outputs[i].tensors.empty()) continue;
    const std::vector<at::Tensor> tensors =
        value.isTensorList() ? value.toTensorVector() : std::vector<at::Tensor>{value.toTensor()};
    for (std::size_t k = 0; k < tensors.size(); ++k) {
      const ResultShape& result = shape.outputs[i].tensors[k];
      if (!result.defined) continue;
      tensors[k].unsafeGetTensorImpl()->set_sizes_and_strides(result.sizes, result.strides, result.offset);
    }
  }
}

/// The call runs on other ranks.
void Call::skip(Decision& decision) {
  work_out_views(decision);
  const bool watched = runtime_->recompute.watches();
  if (watched) enter_block(/*runs_here=*/false);
  // What is reduced inside its storage for this call is reduced from now on, here as there.
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    const bool reduced = is_mesh(tensors_[i].tensor) && !keeps_memory(tensors_[i]);
    if (reduced) reduce_in_storage(tensors_[i].tensor, decision.inputs[i]);
  }
  const std::shared_ptr<const CallShape> known = learn_results(decision);
  const CallShape& shape = *known;
  runtime_->random.num_draws += static_cast<std::uint64_t>(shape.num_draws);
  std::vector<c10::IValue> results;
  std::size_t out = 0;
  for (std::size_t i = 0; i < shape.outputs.size(); ++i) {
    const int returned = info_.returned_argument[i];
    if (returned >= 0 && info_.arguments[static_cast<std::size_t>(returned)].is_out) {
      results.emplace_back(outs_[out++]);
    } else if (returned >= 0 && !shape.outputs[i].is_list) {
      results.emplace_back(tensor_of_argument(returned));
    } else {
      results.push_back(absent_output(shape.outputs[i], decision, i));
    }
  }
  stack_.erase(stack_.begin() + static_cast<std::ptrdiff_t>(base_), stack_.end());
  for (c10::IValue& result : results) stack_.push_back(std::move(result));
  if (watched) inherit_block();
}

c10::IValue Call::absent_output(const OutputShape& shape, const Decision& decision, std::size_t output) const {
  if (!shape.number.isNone()) return shape.number;
  c10::List<at::Tensor> list;
  for (const ResultShape& tensor : shape.tensors) {
    if (!tensor.defined) {
      list.push_back(at::Tensor());
      continue;
    }
    list.push_back(wrap_absent(tensor.sizes, tensor.strides, tensor.offset, tensor.dtype,
                               output_placements(decision, output, tensor.sizes), *mesh_));
    note_view(list.get(list.size() - 1), decision, list.size() - 1);
    note_cast(list.get(list.size() - 1));
  }
  return shape.is_list ? c10::IValue(std::move(list)) : c10::IValue(list.get(0));
}

/// Elements of lists may lie on different stages (a fused optimizer's parameters): each is a call of its own.
void Call::run_each_element() {
  const std::vector<c10::IValue> arguments(stack_.begin() + static_cast<std::ptrdiff_t>(base_), stack_.end());
  stack_.erase(stack_.begin() + static_cast<std::ptrdiff_t>(base_), stack_.end());
  const auto is_list = [&](std::size_t i) {
    return info_.arguments[i].kind == ArgumentKind::kTensorList && arguments[i].isList();
  };
  std::size_t count = 0;
  for (std::size_t i = 0; i < arguments.size() && count == 0; ++i) {
    if (is_list(i)) count = arguments[i].toListRef().size();
  }
  const std::size_t num_outputs = info_.returned_argument.size();
  std::vector<c10::List<at::Tensor>> results(num_outputs);
  for (std::size_t k = 0; k < count; ++k) {
    Stack stack;
    for (std::size_t i = 0; i < arguments.size(); ++i) {
      if (!is_list(i) || arguments[i].toListRef().empty()) {
        stack.push_back(arguments[i]);
        continue;
      }
      c10::impl::GenericList element(arguments[i].toList().elementType());
      element.push_back(arguments[i].toListRef()[k]);
      stack.emplace_back(std::move(element));
    }
    Call one(op_, info_, stack);
    one.prepare();
    one.run_as_decided();
    for (std::size_t i = 0; i < num_outputs; ++i) results[i].push_back(stack[i].toListRef()[0].toTensor());
  }
  for (c10::List<at::Tensor>& result : results) stack_.emplace_back(std::move(result));
}

}  // namespace tessera::tensor
