// SPDX-License-Identifier: Apache-2.0
// Losses: global semantics. A mean over a sharded batch divides by the global count, so its local part is a partial
// sum and the question "average or sum the gradients" never arises.
#include <ATen/core/Reduction.h>

#include "rules/families.h"
#include "rules/rows.h"

namespace tessera::rules {
namespace {

std::int64_t reduction_of(const OpCall& call) { return call.named("reduction").toInt(); }

/// Backward forms have the gradient in front.
int first_input(const OpCall& call) { return call.index_of("grad_output") == 0 ? 1 : 0; }

/// How tensor `index` lies if the scores are cut along `dim`; weights broadcast from the right.
Placement weight_placement(const OpCall& call, int index, std::int64_t dim) {
  const TensorArg& scores = call.tensor(first_input(call));
  const TensorArg& weight = call.tensor(index);
  const std::int64_t own = dim - (scores.dim() - weight.dim());
  const bool follows = weight.defined && own >= 0 &&
                       weight.sizes[static_cast<std::size_t>(own)] == scores.sizes[static_cast<std::size_t>(dim)];
  return follows ? S(own) : R;
}

/// Losses of equal-sized input and target, averaged over all elements, forward and backward.
void elementwise_rows(const OpCall& call, int axis, Rows& rows) {
  const int first = first_input(call);
  if (call.tensor(first).sizes != call.tensor(first + 1).sizes) return;
  const bool each = reduction_of(call) == at::Reduction::None;
  for (const std::int64_t dim : sharded_dims(call, axis)) {
    if (dim >= call.tensor(first).dim()) continue;
    Row row;
    if (first == 1) row.inputs.push_back(each ? S(dim) : R);
    row.inputs.insert(row.inputs.end(), {S(dim), S(dim)});
    for (int i = first + 2; i < call.num_tensors(); ++i) row.inputs.push_back(weight_placement(call, i, dim));
    row.outputs = {each || first == 1 ? S(dim) : P};
    rows.push_back(std::move(row));
  }
}

// multi_margin_loss(self [N, C], target [N], ..., weight? [C]) and its backward form
void multi_margin_rows(const OpCall& call, int axis, Rows& rows) {
  const int first = first_input(call);
  if (!contains(sharded_dims(call, axis), 0) || !has_batch(call, first)) return;
  const bool each = reduction_of(call) == at::Reduction::None;
  if (first == 0) {
    add_row(call, rows, {S(0), S(0), R}, {each ? S(0) : P});
  } else {
    add_row(call, rows, {each ? S(0) : R, S(0), S(0), R}, {S(0)});
  }
}

// multilabel_margin_loss_forward(self [N, C], target [N, C]) -> (output, is_target); backward has is_target last
void multilabel_margin_rows(const OpCall& call, int axis, Rows& rows) {
  const int first = first_input(call);
  if (!contains(sharded_dims(call, axis), 0) || !has_batch(call, first)) return;
  const bool each = reduction_of(call) == at::Reduction::None;
  if (first == 0) {
    add_row(call, rows, {S(0), S(0)}, {each ? S(0) : P, S(0)});
  } else {
    add_row(call, rows, {each ? S(0) : R, S(0), S(0), S(0)}, {S(0)});
  }
}

/// The local mean counts local elements: forward sums instead and divides by the global count.
void compute_mean_of_sum(const c10::OperatorHandle& op, const Decision& decision, const Mesh&,
                         torch::jit::Stack& stack) {
  op.callBoxed(stack);
  c10::IValue& loss = stack[stack.size() - op.schema().returns().size()];
  loss = loss.toTensor().div(static_cast<double>(decision.notes[0]));
}

void localise_mean(const OpCall& call, Decision& decision, std::int64_t count) {
  const auto input = static_cast<std::size_t>(first_input(call));
  if (reduction_of(call) != at::Reduction::Mean || !shards_any(decision.inputs[input])) return;
  decision.notes = {count};
  decision.edits.emplace_back(call.index_of("reduction"), static_cast<std::int64_t>(at::Reduction::Sum));
  decision.compute = compute_mean_of_sum;
}
void localise_mean_of_sum(const OpCall& call, Decision& decision) {
  localise_mean(call, decision, c10::multiply_integers(call.tensor(first_input(call)).sizes));
}
void localise_mean_of_batch(const OpCall& call, Decision& decision) {
  const at::IntArrayRef sizes = call.tensor(first_input(call)).sizes;
  if (sizes.size() > 1) localise_mean(call, decision, sizes[0]);
}

}  // namespace

void add_loss_rules(RuleTable& table) {
  for (const char* name : {"aten::mse_loss", "aten::smooth_l1_loss", "aten::huber_loss", "aten::binary_cross_entropy",
                           "aten::soft_margin_loss"}) {
    table[name] = table[std::string(name) + "_backward"] = {.rows = elementwise_rows, .localise = localise_mean_of_sum, .cuts = Cuts::kAny};
  }
  table["aten::binary_cross_entropy_with_logits"] = {.rows = elementwise_rows, .localise = localise_mean_of_sum, .cuts = Cuts::kAny};
  const Rule multi_margin{.rows = multi_margin_rows, .localise = localise_mean_of_batch, .cuts = Cuts::kAny};
  table["aten::multi_margin_loss"] = table["aten::multi_margin_loss_backward"] = multi_margin;
  const Rule multilabel_margin{.rows = multilabel_margin_rows, .localise = localise_mean_of_batch, .cuts = Cuts::kAny};
  table["aten::multilabel_margin_loss_forward"] = table["aten::multilabel_margin_loss_backward"] = multilabel_margin;
}

}  // namespace tessera::rules
