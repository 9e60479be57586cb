// SPDX-License-Identifier: Apache-2.0
// Reductions over groups of elements: counts per number, and segments of a dim.
#include <ATen/ops/tensor.h>

#include <algorithm>

#include "rules/families.h"
#include "rules/index_range.h"
#include "rules/rows.h"
#include "tessera/base/error.h"

namespace tessera::rules {
namespace {

// bincount(self [N], weights? [N], minlength): a sum over the elements, with room for the largest number anywhere.
void bincount_rows(const OpCall& call, int axis, Rows& rows) {
  const bool follows = contains(sharded_dims(call, axis), 0);
  if (follows && leaves_no_rank_empty(call, call.tensor(0), 0, axis)) add_row(call, rows, {S(0), S(0)}, {P});
}

/// decision.notes: the axes that cut the elements.
void compute_bincount(const c10::OperatorHandle& op, const Decision& decision, const Mesh& mesh,
                      torch::jit::Stack& stack) {
  const at::Tensor numbers = stack[stack.size() - 3].toTensor();
  // The smallest, too: a rank alone that refuses would leave the others waiting.
  at::Tensor bounds = at::tensor({numbers.max().item<std::int64_t>(), -numbers.min().item<std::int64_t>()},
                                 numbers.options().dtype(at::kLong));
  mesh.across(static_cast<unsigned>(decision.notes[0])).all_reduce(bounds, comm::ReduceOp::kMax);
  const auto largest = bounds[0].item<std::int64_t>();
  const auto smallest = -bounds[1].item<std::int64_t>();
  check<ShapeError>(smallest >= 0, "bincount: {} is among the numbers; allowed: 0 and above", smallest);
  stack.back() = std::max(stack.back().toInt(), largest + 1);
  op.callBoxed(stack);
}

void localise_bincount(const OpCall&, Decision& decision) {
  const unsigned axes = axes_cutting(decision.inputs[0], 0);
  if (axes == 0) return;
  decision.notes = {axes};
  decision.compute = compute_bincount;
}

/// Segments lie along `axis`; dims behind it share them, dims in front of it have their own.
void segment_rows(const OpCall& call, int axis, Rows& rows, std::size_t num_values) {
  const std::int64_t along = call.named("axis").toInt();
  for (const std::int64_t dim : sharded_dims(call, axis)) {
    if (dim == along || dim >= call.tensor(0).dim() || !leaves_no_rank_empty(call, call.tensor(0), dim, axis)) continue;
    Row row;
    row.inputs.resize(call.tensors.size(), dim < along ? S(dim) : R);
    for (std::size_t i = 0; i < num_values; ++i) row.inputs[i] = S(dim);
    row.outputs.push_back(S(dim));
    rows.push_back(std::move(row));
  }
}
// segment_reduce(data, reduce, lengths?, indices?, offsets?, axis, ..)
void segment_reduce_rows(const OpCall& call, int axis, Rows& rows) { segment_rows(call, axis, rows, 1); }
// _segment_reduce_backward(grad, output, data, reduce, lengths?, offsets?, axis, ..)
void segment_backward_rows(const OpCall& call, int axis, Rows& rows) { segment_rows(call, axis, rows, 3); }

}  // namespace

void add_segment_rules(RuleTable& table) {
  table["aten::bincount"] = {.rows = bincount_rows, .localise = localise_bincount};
  table["aten::segment_reduce"] = {.rows = segment_reduce_rows};
  table["aten::_segment_reduce_backward"] = {.rows = segment_backward_rows};
}

}  // namespace tessera::rules
