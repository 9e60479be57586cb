// SPDX-License-Identifier: Apache-2.0
// Losses: global semantics. A mean over a sharded batch divides by the global count, so its local part is a partial
// sum and the question "average or sum the gradients" never arises.
#include <ATen/ops/nll_loss2d_forward.h>
#include <ATen/ops/nll_loss_forward.h>
#include <ATen/core/Reduction.h>

#include "rules/families.h"
#include "rules/rows.h"

namespace tessera::rules {
namespace {

std::int64_t reduction_of(const OpCall& call) { return call.named("reduction").toInt(); }

/// A single sample without batch dim has nothing to shard.
bool has_batch(const OpCall& call, int scores) { return call.tensor(scores).dim() > 1; }

// nll_loss_forward(self [N, C, ...], target [N, ...], weight?, reduction, ignore_index) -> (output, total_weight)
void nll_rows(const OpCall& call, int axis, Rows& rows) {
  if (!contains(sharded_dims(call, axis), 0) || !has_batch(call, 0)) return;
  const bool each = reduction_of(call) == at::Reduction::None;
  add_row(call, rows, {S(0), S(0), R}, {each ? S(0) : P, each ? P : R});
}

/// Sums locally, adds up the weights over the ranks (ignored targets and class weights count), divides where asked.
void compute_nll(const c10::OperatorHandle& op, const Decision& decision, const Mesh& mesh,
                 torch::jit::Stack& stack) {
  auto arguments = pop_arguments(op, stack);
  const std::int64_t reduction = arguments[3].toInt();
  const auto weight = arguments[2].toOptional<at::Tensor>();
  const bool planes = op.schema().name() == "aten::nll_loss2d_forward";
  const auto forward = planes ? at::nll_loss2d_forward : at::nll_loss_forward;
  auto [output, total_weight] = forward(arguments[0].toTensor(), arguments[1].toTensor(), weight,
                                        at::Reduction::Sum, arguments[4].toInt());
  for (const std::int64_t axis : decision.notes) mesh.along(static_cast<int>(axis)).all_reduce(total_weight);
  if (reduction == at::Reduction::Mean) output = output.div(total_weight);
  stack.emplace_back(std::move(output));
  stack.emplace_back(std::move(total_weight));
}

void localise_nll(const OpCall& call, Decision& decision) {
  if (reduction_of(call) == at::Reduction::None) return;
  for (int axis = 0; axis < decision.inputs[0].size(); ++axis) {
    if (decision.inputs[0][axis].is_shard(0)) decision.notes.push_back(axis);
  }
  if (!decision.notes.empty()) decision.compute = compute_nll;
}

// nll_loss_backward(grad_output, self, target, weight?, reduction, ignore_index, total_weight): divides by the global
// total_weight that forward left, so the local operator is right as it is.
void nll_backward_rows(const OpCall& call, int axis, Rows& rows) {
  if (!contains(sharded_dims(call, axis), 0) || !has_batch(call, 1)) return;
  const bool each = reduction_of(call) == at::Reduction::None;
  add_row(call, rows, {each ? S(0) : R, S(0), S(0), R, R}, {S(0)});
}

/// Losses of equal-sized input and target, averaged over all elements.
void elementwise_rows(const OpCall& call, int axis, Rows& rows) {
  for (const std::int64_t dim : sharded_dims(call, axis)) {
    if (call.tensor(0).sizes != call.tensor(1).sizes) return;
    const bool each = reduction_of(call) == at::Reduction::None;
    add_row(call, rows, {S(dim), S(dim)}, {each ? S(dim) : P});
  }
}

void elementwise_backward_rows(const OpCall& call, int axis, Rows& rows) {
  const bool each = reduction_of(call) == at::Reduction::None;
  for (const std::int64_t dim : sharded_dims(call, axis)) {
    if (call.tensor(1).sizes != call.tensor(2).sizes) return;
    add_row(call, rows, {each ? S(dim) : R, S(dim), S(dim)}, {S(dim)});
  }
}

/// The local mean counts local elements: forward sums instead and divides by the global count.
void compute_mean_of_sum(const c10::OperatorHandle& op, const Decision& decision, const Mesh&,
                         torch::jit::Stack& stack) {
  op.callBoxed(stack);
  stack.back() = stack.back().toTensor().div(static_cast<double>(decision.notes[0]));
}

void localise_mean_of_sum(const OpCall& call, Decision& decision) {
  const int input = call.num_tensors() == 3 ? 1 : 0;
  if (reduction_of(call) != at::Reduction::Mean || !shards_any(decision.inputs[static_cast<std::size_t>(input)])) return;
  decision.notes = {c10::multiply_integers(call.tensor(input).sizes)};
  decision.edits.emplace_back(call.index_of("reduction"), static_cast<std::int64_t>(at::Reduction::Sum));
  decision.compute = compute_mean_of_sum;
}

}  // namespace

void add_loss_rules(RuleTable& table) {
  for (const char* name : {"aten::nll_loss_forward", "aten::nll_loss2d_forward"}) {
    table[name] = {.rows = nll_rows, .localise = localise_nll};
  }
  for (const char* name : {"aten::nll_loss_backward", "aten::nll_loss2d_backward"}) {
    table[name] = {.rows = nll_backward_rows};
  }
  for (const char* name : {"aten::mse_loss", "aten::smooth_l1_loss", "aten::huber_loss"}) {
    table[name] = {.rows = elementwise_rows, .localise = localise_mean_of_sum};
    table[std::string(name) + "_backward"] = {.rows = elementwise_backward_rows, .localise = localise_mean_of_sum};
  }
}

}  // namespace tessera::rules
