// SPDX-License-Identifier: Apache-2.0
// Negative log-likelihood over a sharded batch, sharded classes or both: the scores are never gathered.
//
// A rank whose classes do not hold a target counts it as ignored; the sum over ranks then has each target once. The
// weights of all ranks' targets are added up before anybody divides, so ignored targets and class weights count right.
#include <ATen/core/Reduction.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/nll_loss2d_backward.h>
#include <ATen/ops/nll_loss2d_forward.h>
#include <ATen/ops/nll_loss_backward.h>
#include <ATen/ops/nll_loss_forward.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "rules/families.h"
#include "rules/index_range.h"
#include "rules/rows.h"

namespace tessera::rules {
namespace {

constexpr int kClassDim = 1;
/// Marks targets that are ignored or another rank's.
constexpr std::int64_t kNotHere = -1;

bool keeps_each(const OpCall& call) { return call.named("reduction").toInt() == at::Reduction::None; }

// nll_loss_forward(self [N, C, ...], target [N, ...], weight?, reduction, ignore_index) -> (output, total_weight)
void forward_rows(const OpCall& call, int axis, Rows& rows) {
  if (!has_batch(call, 0)) return;
  const auto dims = sharded_dims(call, axis);
  const bool each = keeps_each(call);
  if (contains(dims, 0)) add_row(call, rows, {S(0), S(0), R}, {each ? S(0) : P, each ? P : R});
  if (sharded_dim(call, 0, axis) == kClassDim) {
    add_row(call, rows, {S(kClassDim), R, S(0)}, {P, each ? P : R}).counts_places = true;
  }
}

// nll_loss_backward(grad_output, self, target, weight?, reduction, ignore_index, total_weight) divides by the global
// total_weight that forward left, so a shard of the batch needs nothing more.
void backward_rows(const OpCall& call, int axis, Rows& rows) {
  if (!has_batch(call, 1)) return;
  const bool each = keeps_each(call);
  if (contains(sharded_dims(call, axis), 0)) add_row(call, rows, {each ? S(0) : R, S(0), S(0), R, R}, {S(0)});
  if (sharded_dim(call, 1, axis) == kClassDim) {
    add_row(call, rows, {R, S(kClassDim), R, S(0), R}, {S(kClassDim)}).counts_places = true;
  }
}

/// What a compute function needs of the layout, as Decision::notes carries it.
struct Notes {
  unsigned summed_axes = 0;  ///< over which weights add up
  unsigned class_axes = 0;
  IndexRange classes;

  static Notes of(const OpCall& call, const Decision& decision, int scores) {
    const Placements& placements = decision.inputs[static_cast<std::size_t>(scores)];
    const unsigned class_axes = axes_cutting(placements, kClassDim);
    return {axes_cutting(placements, 0) | class_axes, class_axes, IndexRange::of(call, decision, scores, kClassDim)};
  }
  static Notes from(const std::vector<std::int64_t>& notes) {
    return {static_cast<unsigned>(notes[0]), static_cast<unsigned>(notes[1]), {notes[2], notes[3], notes[4]}};
  }
  [[nodiscard]] std::vector<std::int64_t> pack() const {
    return {summed_axes, class_axes, classes.begin, classes.length, classes.total};
  }
};

/// Targets as indices into this rank's classes.
at::Tensor local_targets(const at::Tensor& target, std::int64_t ignore_index, const IndexRange& classes) {
  const at::Tensor counts = target.ne(ignore_index);
  classes.check_bounds(target, counts, "nll_loss");
  return at::where(counts.logical_and_(classes.covers(target)), target.sub(classes.begin),
                   at::full_like(target, kNotHere));
}

void compute_forward(const c10::OperatorHandle& op, const Decision& decision, const Mesh& mesh,
                     torch::jit::Stack& stack) {
  const auto arguments = pop_arguments(op, stack);
  const Notes notes = Notes::from(decision.notes);
  const at::Tensor scores = arguments[0].toTensor();
  at::Tensor target = arguments[1].toTensor();
  const auto weight = arguments[2].toOptional<at::Tensor>();
  const std::int64_t reduction = arguments[3].toInt();
  std::int64_t ignore_index = arguments[4].toInt();
  const bool each = reduction == at::Reduction::None;
  const bool planes = op.schema().name() == "aten::nll_loss2d_forward";
  at::Tensor output = each ? at::zeros(target.sizes(), scores.options()) : at::zeros({}, scores.options());
  at::Tensor total_weight = at::zeros({}, scores.options());
  if (notes.class_axes != 0) {
    target = local_targets(target, ignore_index, notes.classes);
    ignore_index = kNotHere;
  }
  if (notes.class_axes == 0 || notes.classes.length > 0) {
    const auto forward = planes ? at::nll_loss2d_forward : at::nll_loss_forward;
    std::tie(output, total_weight) =
        forward(scores, target, weight, each ? at::Reduction::None : at::Reduction::Sum, ignore_index);
  }
  if (!each) mesh.across(notes.summed_axes).all_reduce(total_weight);
  stack.emplace_back(reduction == at::Reduction::Mean ? output.div(total_weight) : std::move(output));
  stack.emplace_back(std::move(total_weight));
}

void compute_backward(const c10::OperatorHandle& op, const Decision& decision, const Mesh&, torch::jit::Stack& stack) {
  const auto arguments = pop_arguments(op, stack);
  const Notes notes = Notes::from(decision.notes);
  // Those of the whole may be contiguous where a shard's are not.
  const at::Tensor scores = arguments[1].toTensor().contiguous();
  const at::Tensor target = local_targets(arguments[2].toTensor(), arguments[5].toInt(), notes.classes);
  if (notes.classes.length == 0) {
    stack.emplace_back(at::zeros_like(scores));
    return;
  }
  const bool planes = op.schema().name() == "aten::nll_loss2d_backward";
  const auto backward = planes ? at::nll_loss2d_backward : at::nll_loss_backward;
  stack.emplace_back(backward(arguments[0].toTensor(), scores, target, arguments[3].toOptional<at::Tensor>(),
                              arguments[4].toInt(), kNotHere, arguments[6].toTensor()));
}

void localise_forward(const OpCall& call, Decision& decision) {
  if (!has_batch(call, 0)) return;
  const Notes notes = Notes::of(call, decision, 0);
  if (notes.class_axes == 0 && (keeps_each(call) || notes.summed_axes == 0)) return;
  decision.notes = notes.pack();
  decision.compute = compute_forward;
}

void localise_backward(const OpCall& call, Decision& decision) {
  if (!has_batch(call, 1)) return;
  const Notes notes = Notes::of(call, decision, 1);
  if (notes.class_axes == 0) return;
  decision.notes = notes.pack();
  decision.compute = compute_backward;
}

/// output [N, ...]: the scores without their classes.
std::vector<Sizes> forward_sizes(const OpCall& call) {
  if (!keeps_each(call)) return {Sizes{}, Sizes{}};
  const at::IntArrayRef target = call.tensor(1).sizes;
  return {Sizes(target.begin(), target.end()), Sizes{}};
}

}  // namespace

void add_likelihood_rules(RuleTable& table) {
  for (const char* name : {"aten::nll_loss_forward", "aten::nll_loss2d_forward"}) {
    table[name] = {.rows = forward_rows, .localise = localise_forward, .output_sizes = forward_sizes, .cuts = Cuts::kAny};
  }
  for (const char* name : {"aten::nll_loss_backward", "aten::nll_loss2d_backward"}) {
    table[name] = {.rows = backward_rows, .localise = localise_backward, .cuts = Cuts::kAny};
  }
}

}  // namespace tessera::rules
