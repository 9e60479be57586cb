// SPDX-License-Identifier: Apache-2.0
// One call of an operator on its way through the dispatcher: find the specs, decide, redistribute, run locally, wrap.
#pragma once

#include <ATen/core/stack.h>

#include <exception>
#include <optional>
#include <string>
#include <vector>

#include "tensor/decision_cache.h"
#include "tensor/operator_info.h"

namespace tessera::tensor {

/// A tensor among the arguments: in a slot of the stack, or an element of a list in that slot.
struct TensorSlot {
  at::Tensor tensor;
  int argument;
  bool written;
};

class Call {
 public:
  using Stack = torch::jit::Stack;

  Call(const c10::OperatorHandle& op, const OperatorInfo& info, Stack& stack)
      : op_(op), info_(info), stack_(stack), base_(stack.size() - info.arguments.size()) {
    collect_tensors();
  }
  /// Takes the arguments off the stack and leaves the outputs.
  void run();
  /// The same for a call that was made before and decided then.
  void run_again(Decision& decision);

 private:
  [[nodiscard]] c10::IValue& slot(std::size_t argument) { return stack_[base_ + argument]; }
  [[nodiscard]] c10::ArrayRef<c10::IValue> arguments() {
    return c10::ArrayRef<c10::IValue>(&slot(0), info_.arguments.size());
  }

  // call.cpp: from arguments to a decision, and local arguments.
  void prepare();
  void run_as_decided();
  void keep_what_changes(const Decision& decision) const;
  void collect_tensors();
  void add_tensor(const at::Tensor& tensor, std::size_t argument);
  void refuse_what_has_no_meaning() const;
  void refuse_write_into_unknown(const at::Tensor& tensor) const;
  [[noreturn]] void refuse_random() const;
  void build_key(CallKey& key);
  [[nodiscard]] OpCall describe_call();
  Decision* known_decision();
  [[nodiscard]] bool redistributes(const Decision& decision) const;
  [[nodiscard]] bool keeps_shards(const Decision& decision) const;
  void run_here(Decision& decision);
  void compute(Decision& decision);
  void run_localised(Decision& decision);
  [[nodiscard]] std::string global_context() const;
  [[nodiscard]] static bool keeps_memory(const TensorSlot& slot);
  [[nodiscard]] bool gathers(const MeshStorage& storage, const Placements& target) const;
  [[nodiscard]] at::Tensor local_for(const TensorSlot& slot, const Placements& target) const;
  void localise_arguments(Decision& decision);
  std::size_t localise_list(std::size_t argument, std::size_t next, const Decision& decision);
  /// Scalars of the call, for working out global output sizes after the stack is gone.
  void keep_arguments();

  // call_results.cpp: from local results to mesh tensors.
  void write_back(const Decision& decision);
  void write_back_plain(at::Tensor plain, const at::Tensor& local, const Placements& target) const;
  void wrap_outputs(Decision& decision);
  [[nodiscard]] at::Tensor wrap_one(const at::Tensor& local, const Decision& decision, std::size_t output,
                                    std::size_t element = 0) const;
  [[nodiscard]] at::Tensor wrap_as_planned(const at::Tensor& local, const Decision& decision) const;
  void wrap_list(c10::IValue& value, const Decision& decision, std::size_t output) const;
  [[nodiscard]] Placements output_placements(const Decision& decision, std::size_t output, at::IntArrayRef sizes) const;
  void note_view(const at::Tensor& result, const Decision& decision, std::size_t element) const;
  void note_copy(MeshStorage& storage, const Decision& decision, std::size_t element) const;
  void note_cast(const at::Tensor& result) const;
  [[nodiscard]] at::Tensor tensor_of_argument(int argument) const;
  [[nodiscard]] at::Tensor fill_out(const at::Tensor& out, const at::Tensor& local, const Decision& decision,
                                    std::size_t output) const;

  // call_layout.cpp: strides and offsets of results.
  [[nodiscard]] bool hides_strides(const Decision& decision) const;
  void work_out_layout(Decision& decision, c10::ArrayRef<c10::IValue> arguments);
  void work_out_views(Decision& decision);
  [[nodiscard]] std::vector<OutputShape> layouts_of_whole(c10::ArrayRef<c10::IValue> arguments) const;
  [[nodiscard]] const ResultShape* known_layout(at::IntArrayRef sizes, std::size_t output, std::size_t element) const;
  [[nodiscard]] at::Tensor wrap_result(at::Tensor local, const Placements& placements, at::IntArrayRef sizes,
                                       std::size_t output, std::size_t element) const;

  // call_recompute.cpp: what recomputation wants to know of a call in forward.
  void run_recorded(Decision& decision);
  void enter_block(bool runs_here) const;
  [[nodiscard]] bool reads_parameters_only() const;
  [[nodiscard]] bool is_worth_recording(const Decision& decision) const;
  [[nodiscard]] bool can_be_recorded() const;
  [[nodiscard]] std::vector<at::Tensor> outputs() const;
  void inherit_block() const;

  // call_stages.cpp: calls whose tensors lie on pipeline stages.
  [[nodiscard]] bool has_staged_tensors() const;
  void add_stages_to_key(CallKey& key) const;
  void describe_stages(OpCall& call) const;
  void note_hindrances(const Decision& decision) const;
  void run_on_stages(Decision& decision);
  void run_each_element();
  void bring_operands(StageSet stages) const;
  void finish_sends_of_written() const;
  void compute_or_share_failure(Decision& decision);
  void share_failure(Decision& decision, const std::exception_ptr& failure) const;
  void compute_now_or_later(Decision& decision);
  [[nodiscard]] bool differs_each_time() const;
  void agree_on_results(Decision& decision, std::int64_t num_draws);
  [[nodiscard]] bool knows_results(Decision& decision) const;
  [[nodiscard]] std::shared_ptr<const CallShape> learn_results(Decision& decision) const;
  void refuse_what_is_new() const;
  [[nodiscard]] std::string describe_operands() const;
  void take_strides(const CallShape& shape) const;
  void skip(Decision& decision);
  [[nodiscard]] c10::IValue absent_output(const OutputShape& shape, const Decision& decision, std::size_t output) const;

  // call_deferred.cpp: gradients of weights that are computed later.
  [[nodiscard]] bool can_wait(Decision& decision) const;
  [[nodiscard]] bool sums_what_waits(const Decision& decision) const;
  void run_later(Decision& decision);
  void wait_with(const std::shared_ptr<Deferred>& work) const;
  void sum_later();
  void multiply_later(Decision& decision);
  void convolve_later(Decision& decision);

  const c10::OperatorHandle& op_;
  const OperatorInfo& info_;
  Stack& stack_;
  std::size_t base_;
  c10::SmallVector<TensorSlot, 6> tensors_;
  c10::SmallVector<at::Tensor, 1> outs_;
  c10::SmallVector<at::Tensor, 1> local_outs_;  ///< filled by the local call
  c10::SmallVector<std::pair<std::size_t, at::Tensor>, 1> passed_;
  std::shared_ptr<const ResultLayout> layout_;  ///< of this call; null: shards show it
  std::shared_ptr<const ShownViews> views_;  ///< of this call; null: views have the memory of their base
  std::optional<OpCall> sizes_call_;
  std::vector<c10::IValue> kept_arguments_;
  const Mesh* mesh_ = nullptr;
  MeshRuntime* runtime_ = nullptr;
  bool staged_ = false;  ///< some tensor lies on pipeline stages
};

}  // namespace tessera::tensor
