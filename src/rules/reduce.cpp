// SPDX-License-Identifier: Apache-2.0
// Reductions: over a sharded dim they leave a partial result; over others the shard stays.
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/sum.h>

#include <cmath>

#include "rules/families.h"
#include "rules/rows.h"

namespace tessera::rules {
namespace {

bool keeps_dim(const OpCall& call) {
  const int index = call.index_of("keepdim");
  return index >= 0 && call.argument(index).isBool() && call.argument(index).toBool();
}

c10::SmallVector<std::int64_t, 6> reduced_dims(const OpCall& call) {
  const int index = call.index_of("dim");
  return dims_argument(index < 0 ? c10::IValue() : call.argument(index), call.tensor(0).dim());
}

/// Where dim `dim` of the input is in the output, given that it is not reduced.
std::int64_t remaining_dim(std::int64_t dim, const c10::SmallVector<std::int64_t, 6>& reduced, bool keepdim) {
  if (keepdim) return dim;
  return dim - std::count_if(reduced.begin(), reduced.end(), [&](std::int64_t other) { return other < dim; });
}

/// `over` is the placement of the result when the sharded dim itself is reduced; nothing if that is not possible.
void reduction_rows(const OpCall& call, int axis, Rows& rows, std::optional<Placement> over) {
  const std::int64_t dim = sharded_dim(call, 0, axis);
  if (dim < 0) return;
  const auto reduced = reduced_dims(call);
  if (contains(reduced, dim)) {
    if (over) add_row(call, rows, {S(dim)}, {*over});
    return;
  }
  Row row{{S(dim)}, {}};
  row.inputs.resize(call.tensors.size());
  row.outputs.resize(static_cast<std::size_t>(call.num_outputs()), S(remaining_dim(dim, reduced, keeps_dim(call))));
  rows.push_back(std::move(row));
}

void sum_rows(const OpCall& call, int axis, Rows& rows) {
  if (call.tensor(0).placements[axis] == P) add_row(call, rows, {P}, {P});
  reduction_rows(call, axis, rows, P);
}
void max_rows(const OpCall& call, int axis, Rows& rows) {
  reduction_rows(call, axis, rows, Partial(PartialOp::kMax));
}
void min_rows(const OpCall& call, int axis, Rows& rows) {
  reduction_rows(call, axis, rows, Partial(PartialOp::kMin));
}
/// max(dim) and min(dim) return indices too, which do not survive a partial result; full max() has no dim argument.
void max_or_indices_rows(const OpCall& call, int axis, Rows& rows) {
  call.num_outputs() == 1 && call.num_tensors() == 1 ? max_rows(call, axis, rows)
                                                     : reduction_rows(call, axis, rows, std::nullopt);
}
void min_or_indices_rows(const OpCall& call, int axis, Rows& rows) {
  call.num_outputs() == 1 && call.num_tensors() == 1 ? min_rows(call, axis, rows)
                                                     : reduction_rows(call, axis, rows, std::nullopt);
}
void whole_dim_rows(const OpCall& call, int axis, Rows& rows) { reduction_rows(call, axis, rows, std::nullopt); }

/// Local sum over the global count: shards may be uneven or empty, so local means cannot be averaged.
void compute_mean(const c10::OperatorHandle& op, const Decision& decision, const Mesh&, torch::jit::Stack& stack) {
  const auto arguments = pop_arguments(op, stack);
  const at::Tensor self = arguments[0].toTensor();
  const bool over_all = op.schema().arguments().size() == 2;
  const auto dtype = arguments.back().toOptional<at::ScalarType>();
  const at::Tensor sum = over_all ? at::sum(self, dtype)
                                  : at::sum(self, arguments[1].toOptional<std::vector<std::int64_t>>().value_or(
                                                      std::vector<std::int64_t>{}),
                                            arguments[2].toBool(), dtype);
  stack.emplace_back(sum.div_(static_cast<double>(decision.notes[0])));
}

void localise_mean(const OpCall& call, Decision& decision) {
  if (!decision.outputs[0].any_partial()) return;
  std::int64_t count = 1;
  for (const std::int64_t dim : reduced_dims(call)) count *= call.tensor(0).sizes[static_cast<std::size_t>(dim)];
  decision.notes = {count};
  decision.compute = compute_mean;
}

/// Sharded dims under a norm: the p-th powers are summed over the ranks at once, since the root is not linear.
void norm_rows(const OpCall& call, int axis, Rows& rows) { reduction_rows(call, axis, rows, R); }

void localise_norm(const OpCall& call, Decision& decision);

double order_of(const c10::OperatorHandle& op, const std::vector<c10::IValue>& arguments) {
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& name = op.schema().arguments()[i].name();
    if (name == "ord" || name == "p") return arguments[i].isNone() ? 2.0 : arguments[i].toScalar().toDouble();
  }
  return 2.0;
}

void compute_norm(const c10::OperatorHandle& op, const Decision& decision, const Mesh& mesh,
                  torch::jit::Stack& stack) {
  const double order = order_of(op, std::vector<c10::IValue>(
                                        stack.end() - static_cast<std::ptrdiff_t>(op.schema().arguments().size()),
                                        stack.end()));
  op.callBoxed(stack);
  at::Tensor norm = stack.back().toTensor();
  const bool extreme = std::isinf(order);
  if (!extreme && order != 0) norm = at::pow(norm, order);
  for (const std::int64_t axis : decision.notes) {
    const comm::ReduceOp reduce = !extreme ? comm::ReduceOp::kSum : order > 0 ? comm::ReduceOp::kMax : comm::ReduceOp::kMin;
    norm = norm.contiguous();
    mesh.along(static_cast<int>(axis)).all_reduce(norm, reduce);
  }
  stack.back() = extreme || order == 0 ? norm : at::pow(norm, 1.0 / order);
}

void localise_norm(const OpCall& call, Decision& decision) {
  const auto reduced = reduced_dims(call);
  for (int axis = 0; axis < decision.inputs[0].size(); ++axis) {
    const Placement placement = decision.inputs[0][axis];
    if (placement.is_shard() && contains(reduced, placement.dim)) decision.notes.push_back(axis);
  }
  if (!decision.notes.empty()) decision.compute = compute_norm;
}

}  // namespace

void add_reduce_rules(RuleTable& table) {
  table["aten::sum"] = {.rows = sum_rows};
  table["aten::mean"] = {.rows = sum_rows, .localise = localise_mean};
  table["aten::amax"] = {.rows = max_rows};
  table["aten::amin"] = {.rows = min_rows};
  table["aten::max"] = {.rows = max_or_indices_rows};
  table["aten::min"] = {.rows = min_or_indices_rows};
  for (const char* name : {"aten::argmax", "aten::argmin", "aten::logsumexp", "aten::prod", "aten::var", "aten::std",
                           "aten::any", "aten::all"}) {
    table[name] = {.rows = whole_dim_rows};
  }
  for (const char* name : {"aten::linalg_vector_norm", "aten::norm"}) {
    table[name] = {.rows = norm_rows, .localise = localise_norm};
  }
  // Reads one number: the value must be whole.
  table["aten::_local_scalar_dense"] = {};
  table["aten::equal"] = {};
}

}  // namespace tessera::rules
