// SPDX-License-Identifier: Apache-2.0
// Reductions: over a sharded dim they leave a partial result; over others the shard stays.
#include <ATen/TensorOperators.h>
#include <ATen/ops/amax.h>
#include <ATen/ops/isinf.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/squeeze.h>
#include <ATen/ops/sum.h>

#include <cmath>
#include <span>

#include "rules/families.h"
#include "rules/reductions.h"
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
/// Sums of what is not linear in the elements: count_nonzero, nansum.
void count_rows(const OpCall& call, int axis, Rows& rows) { reduction_rows(call, axis, rows, P); }

/// 16-bit integers are the one kind of number that no transport reduces.
bool travels(const TensorArg& tensor) { return tensor.dtype != at::kShort; }

/// The extreme of nothing does not exist.
void extreme_rows(const OpCall& call, int axis, Rows& rows, PartialOp op) {
  const std::int64_t dim = sharded_dim(call, 0, axis);
  const bool possible = dim >= 0 && leaves_no_rank_empty(call, call.tensor(0), dim, axis) && travels(call.tensor(0));
  reduction_rows(call, axis, rows, possible ? std::optional(Partial(op)) : std::nullopt);
}
void max_rows(const OpCall& call, int axis, Rows& rows) { extreme_rows(call, axis, rows, PartialOp::kMax); }
void min_rows(const OpCall& call, int axis, Rows& rows) { extreme_rows(call, axis, rows, PartialOp::kMin); }

// aminmax(self, dim, keepdim) -> (min, max)
void both_extremes_rows(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t dim = sharded_dim(call, 0, axis);
  if (dim < 0) return;
  if (!contains(reduced_dims(call), dim)) {
    reduction_rows(call, axis, rows, std::nullopt);
  } else if (leaves_no_rank_empty(call, call.tensor(0), dim, axis) && travels(call.tensor(0))) {
    add_row(call, rows, {S(dim)}, {Partial(PartialOp::kMin), Partial(PartialOp::kMax)});
  }
}

/// any and all: of nothing they are false and true, so an empty shard does no harm. uint8 in, uint8 out.
template <PartialOp Op>
void truth_rows(const OpCall& call, int axis, Rows& rows) {
  reduction_rows(call, axis, rows, Partial(Op));
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
  const bool over_all = !op.schema().argumentIndexWithName("dim").has_value();
  const auto dtype_index = static_cast<std::size_t>(op.schema().argumentIndexWithName("dtype").value());
  const auto dtype = arguments[dtype_index].toOptional<at::ScalarType>();
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

/// Mesh axes along which a dim that is reduced away lies sharded.
std::vector<std::int64_t> axes_reduced_over(const OpCall& call, const Decision& decision) {
  std::vector<std::int64_t> axes;
  const auto reduced = reduced_dims(call);
  for (int axis = 0; axis < decision.inputs[0].size(); ++axis) {
    const Placement placement = decision.inputs[0][axis];
    if (placement.is_shard() && contains(reduced, placement.dim)) axes.push_back(axis);
  }
  return axes;
}

void reduce_over(at::Tensor& tensor, std::span<const std::int64_t> axes, const Mesh& mesh, comm::ReduceOp op) {
  tensor = tensor.contiguous();
  for (const std::int64_t axis : axes) mesh.along(static_cast<int>(axis)).all_reduce(tensor, op);
}

/// Numbers that the reductions below need, packed into Decision::notes.
struct ReductionNotes {
  std::int64_t count = 1;  ///< global elements per result
  bool keepdim = false;
  std::vector<std::int64_t> dims;
  std::vector<std::int64_t> axes;

  [[nodiscard]] std::vector<std::int64_t> pack() const {
    std::vector<std::int64_t> notes{count, keepdim ? 1 : 0, static_cast<std::int64_t>(dims.size())};
    notes.insert(notes.end(), dims.begin(), dims.end());
    notes.insert(notes.end(), axes.begin(), axes.end());
    return notes;
  }
  [[nodiscard]] static ReductionNotes unpack(const std::vector<std::int64_t>& notes) {
    const auto first_axis = notes.begin() + 3 + notes[2];
    return {notes[0], notes[1] != 0, {notes.begin() + 3, first_axis}, {first_axis, notes.end()}};
  }
  [[nodiscard]] at::Tensor finish(const at::Tensor& kept) const { return keepdim ? kept : at::squeeze(kept, dims); }
};

/// Lets `Work` run where a reduced dim is sharded.
template <tensor::Compute Work>
void localise_reduction(const OpCall& call, Decision& decision) {
  ReductionNotes notes;
  notes.axes = axes_reduced_over(call, decision);
  if (notes.axes.empty()) return;
  notes.keepdim = keeps_dim(call);
  for (const std::int64_t dim : reduced_dims(call)) {
    notes.dims.push_back(dim);
    notes.count *= call.tensor(0).sizes[static_cast<std::size_t>(dim)];
  }
  decision.notes = notes.pack();
  decision.compute = Work;
}

/// Reductions that are combined over the ranks at once, because what the ranks hold is no partial result.
void combined_rows(const OpCall& call, int axis, Rows& rows) {
  const bool real = c10::isFloatingType(call.tensor(0).dtype);
  reduction_rows(call, axis, rows, real ? std::optional(R) : std::nullopt);
}
void combined_rows_of_something(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t dim = sharded_dim(call, 0, axis);
  if (dim < 0) return;
  leaves_no_rank_empty(call, call.tensor(0), dim, axis) ? combined_rows(call, axis, rows)
                                                        : reduction_rows(call, axis, rows, std::nullopt);
}

// var, std, var_mean, std_mean(self, dim, *, correction, keepdim): the mean first, then the distances from it.
void compute_variance(const c10::OperatorHandle& op, const Decision& decision, const Mesh& mesh,
                      torch::jit::Stack& stack) {
  const auto arguments = pop_arguments(op, stack);
  const ReductionNotes notes = ReductionNotes::unpack(decision.notes);
  const at::Tensor self = arguments[0].toTensor();
  const double correction = arguments[2].isNone() ? 1.0 : arguments[2].toScalar().toDouble();
  const auto count = static_cast<double>(notes.count);
  at::Tensor mean = at::sum(self, notes.dims, /*keepdim=*/true);
  reduce_over(mean, notes.axes, mesh, comm::ReduceOp::kSum);
  mean = mean.div(count);
  at::Tensor result = at::sum((self - mean).square(), notes.dims, /*keepdim=*/true);
  reduce_over(result, notes.axes, mesh, comm::ReduceOp::kSum);
  result = result.div(std::max(count - correction, 0.0));
  const std::string& name = op.schema().name();
  if (name.starts_with("aten::std")) result = result.sqrt();
  stack.emplace_back(notes.finish(result));
  if (name.ends_with("_mean")) stack.emplace_back(notes.finish(mean));
}

// logsumexp(self, dim, keepdim): the maximum first, then the sum of what cannot overflow.
void compute_logsumexp(const c10::OperatorHandle& op, const Decision& decision, const Mesh& mesh,
                       torch::jit::Stack& stack) {
  const auto arguments = pop_arguments(op, stack);
  const ReductionNotes notes = ReductionNotes::unpack(decision.notes);
  const at::Tensor self = arguments[0].toTensor();
  at::Tensor maximum = at::amax(self, notes.dims, /*keepdim=*/true);
  reduce_over(maximum, notes.axes, mesh, comm::ReduceOp::kMax);
  maximum.masked_fill_(at::isinf(maximum), 0);
  at::Tensor sum = at::sum((self - maximum).exp(), notes.dims, /*keepdim=*/true);
  reduce_over(sum, notes.axes, mesh, comm::ReduceOp::kSum);
  stack.emplace_back(notes.finish(sum.log() + maximum));
}

/// The local product, multiplied over the ranks.
void compute_product(const c10::OperatorHandle& op, const Decision& decision, const Mesh& mesh,
                     torch::jit::Stack& stack) {
  op.callBoxed(stack);
  at::Tensor product = stack.back().toTensor();
  reduce_over(product, ReductionNotes::unpack(decision.notes).axes, mesh, comm::ReduceOp::kProduct);
  stack.back() = product;
}

// trace(self): the diagonal of a shard begins where the shard does.
void compute_trace(const c10::OperatorHandle& op, const Decision& decision, const Mesh&, torch::jit::Stack& stack) {
  const auto arguments = pop_arguments(op, stack);
  stack.emplace_back(at::sum(arguments[0].toTensor().diagonal(decision.notes[0])));
}
void trace_rows(const OpCall& call, int axis, Rows& rows) {
  if (call.tensor(0).placements[axis] == P) add_row(call, rows, {P}, {P});
  const std::int64_t dim = sharded_dim(call, 0, axis);
  if (dim >= 0) add_row(call, rows, {S(dim)}, {P});
}
void localise_trace(const OpCall& call, Decision& decision) {
  const auto offset = [&](int dim) {
    const std::int64_t size = call.tensor(0).sizes[static_cast<std::size_t>(dim)];
    return tensor::local_extent(size, dim, decision.inputs[0], call.mesh).offset;
  };
  if (!shards_any(decision.inputs[0])) return;
  decision.notes = {offset(0) - offset(1)};
  decision.compute = compute_trace;
}

/// A histogram between given bounds is a sum over the elements.
void histogram_rows(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t dim = sharded_dim(call, 0, axis);
  const auto bound = [&](const char* name) {
    const c10::IValue& value = call.named(name);
    return value.isInt() ? value.toInt() : 0;
  };
  if (dim >= 0 && bound("min") != bound("max")) add_row(call, rows, {S(dim)}, {P});
}

/// Sharded dims under a norm: the p-th powers are summed over the ranks at once, since the root is not linear.
void norm_rows(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t dim = sharded_dim(call, 0, axis);
  const bool possible = dim >= 0 && leaves_no_rank_empty(call, call.tensor(0), dim, axis);
  reduction_rows(call, axis, rows, possible ? std::optional(R) : std::nullopt);
}

double order_of(const c10::OperatorHandle& op, const std::vector<c10::IValue>& arguments) {
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& name = op.schema().arguments()[i].name();
    if (name == "ord" || name == "p") return arguments[i].isNone() ? 2.0 : arguments[i].toScalar().toDouble();
  }
  return 2.0;
}

}  // namespace

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

namespace {

void localise_norm(const OpCall& call, Decision& decision) {
  decision.notes = axes_reduced_over(call, decision);
  if (!decision.notes.empty()) decision.compute = compute_norm;
}

}  // namespace

void add_reduce_rules(RuleTable& table) {
  table["aten::sum"] = {.rows = sum_rows, .cuts = Cuts::kAny};
  table["aten::mean"] = {.rows = sum_rows, .localise = localise_mean, .cuts = Cuts::kAny};
  table["aten::amax"] = {.rows = max_rows};
  table["aten::amin"] = {.rows = min_rows};
  table["aten::max"] = {.rows = max_or_indices_rows};
  table["aten::min"] = {.rows = min_or_indices_rows};
  table["aten::aminmax"] = {.rows = both_extremes_rows};
  table["aten::any"] = {.rows = truth_rows<PartialOp::kMax>, .cuts = Cuts::kAny};
  table["aten::all"] = {.rows = truth_rows<PartialOp::kMin>, .cuts = Cuts::kAny};
  for (const char* name : {"aten::count_nonzero", "aten::nansum", "aten::linalg__powsum"}) table[name] = {.rows = count_rows, .cuts = Cuts::kAny};
  for (const char* name : {"aten::argmax", "aten::argmin"}) table[name] = {.rows = whole_dim_rows, .cuts = Cuts::kAny};
  for (const char* name : {"aten::var", "aten::std", "aten::var_mean", "aten::std_mean"}) {
    table[name] = {.rows = combined_rows, .localise = localise_reduction<compute_variance>, .cuts = Cuts::kAny};
  }
  table["aten::logsumexp"] = {.rows = combined_rows_of_something, .localise = localise_reduction<compute_logsumexp>};
  table["aten::prod"] = {.rows = combined_rows, .localise = localise_reduction<compute_product>, .cuts = Cuts::kAny};
  table["aten::trace"] = {.rows = trace_rows, .localise = localise_trace};
  table["aten::histc"] = {.rows = histogram_rows};
  for (const char* name : {"aten::linalg_vector_norm", "aten::norm"}) {
    table[name] = {.rows = norm_rows, .localise = localise_norm};
  }
  // Reads one number: the value must be whole.
  table["aten::_local_scalar_dense"] = {};
  // How many are selected is known of the whole value only.
  table["aten::masked_select"] = {};
  for (const char* name : {"aten::equal", "aten::allclose", "aten::_is_all_true", "aten::_is_any_true"}) table[name] = {};
}

}  // namespace tessera::rules
