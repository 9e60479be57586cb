// SPDX-License-Identifier: Apache-2.0
// Operators on lists (_foreach_add_, _fused_adamw_ ...): the k-th tensors of the lists are a call of their own, and each
// may lie otherwise than its neighbours.
#include <ATen/core/enum_tag.h>

#include <array>
#include <cmath>
#include <string>

#include "rules/families.h"
#include "rules/rows.h"

namespace tessera::rules {
namespace {

void keep_elementwise_rows(const OpCall& call, int axis, Rows& rows) { pointwise_rule().rows(call, axis, rows); }

/// Norms and extremes of whole tensors: the ranks' results are combined at once.
void whole_rows(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t dim = sharded_dim(call, 0, axis);
  if (dim >= 0) add_row(call, rows, {S(dim)}, {R});
}

/// Reduces element k over the axes that cut tensor k: one collective per axis for all that need it.
void reduce_elements(std::vector<at::Tensor>& elements, const Decision& decision, const Mesh& mesh, comm::ReduceOp op) {
  for (int axis = 0; axis < mesh.num_axes(); ++axis) {
    std::vector<at::Tensor> cut;
    for (std::size_t k = 0; k < elements.size(); ++k) {
      if (decision.inputs[k][axis].is_shard()) cut.push_back(elements[k]);
    }
    if (!cut.empty()) mesh.along(axis).all_reduce_coalesced(cut, op).wait();
  }
}

c10::List<at::Tensor> as_list(const std::vector<at::Tensor>& tensors) {
  c10::List<at::Tensor> list;
  for (const at::Tensor& tensor : tensors) list.push_back(tensor);
  return list;
}

// _foreach_norm(self, ord, dtype)
void compute_norms(const c10::OperatorHandle& op, const Decision& decision, const Mesh& mesh, torch::jit::Stack& stack) {
  const double order = stack[stack.size() - 2].toScalar().toDouble();
  op.callBoxed(stack);
  std::vector<at::Tensor> norms = stack.back().toTensorVector();
  const bool extreme = std::isinf(order);
  const auto has_power = !extreme && order != 0;
  for (std::size_t k = 0; k < norms.size(); ++k) {
    if (has_power && shards_any(decision.inputs[k])) norms[k] = norms[k].pow(order);
  }
  const auto combine = !extreme   ? comm::ReduceOp::kSum
                       : order > 0 ? comm::ReduceOp::kMax
                                   : comm::ReduceOp::kMin;
  reduce_elements(norms, decision, mesh, combine);
  for (std::size_t k = 0; k < norms.size(); ++k) {
    if (has_power && shards_any(decision.inputs[k])) norms[k] = norms[k].pow(1.0 / order);
  }
  stack.back() = as_list(norms);
}

// _foreach_max(self), _foreach_powsum(self, ord, dtype)
template <comm::ReduceOp Op>
void compute_reduced(const c10::OperatorHandle& op, const Decision& decision, const Mesh& mesh, torch::jit::Stack& stack) {
  op.callBoxed(stack);
  std::vector<at::Tensor> values = stack.back().toTensorVector();
  reduce_elements(values, decision, mesh, Op);
  stack.back() = as_list(values);
}

template <tensor::Compute Work>
void localise_reduced(const OpCall&, Decision& decision) {
  for (const Placements& placements : decision.inputs) {
    if (shards_any(placements)) decision.compute = Work;
  }
}

/// The maximum of nothing does not exist, nor does its infinity norm.
void rows_of_something(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t dim = sharded_dim(call, 0, axis);
  if (dim >= 0 && leaves_no_rank_empty(call, call.tensor(0), dim, axis)) whole_rows(call, axis, rows);
}

// _amp_foreach_non_finite_check_and_unscale_(self, found_inf, inv_scale): found_inf counts over all ranks.
void compute_unscale(const c10::OperatorHandle& op, const Decision& decision, const Mesh& mesh, torch::jit::Stack& stack) {
  at::Tensor found = stack[stack.size() - 2].toTensor();
  op.callBoxed(stack);
  for (int axis = 0; axis < mesh.num_axes(); ++axis) {
    const bool cut = std::any_of(decision.inputs.begin(), decision.inputs.end(),
                                 [&](const Placements& placements) { return placements[axis].is_shard(); });
    if (cut) mesh.along(axis).all_reduce(found, comm::ReduceOp::kMax);
  }
}

constexpr std::array kElementwise{
    "abs",     "acos",  "add",   "addcdiv", "addcmul", "asin",    "atan",   "ceil",       "clamp_max", "clamp_min",
    "copy",    "cos",   "cosh",  "div",     "erf",     "erfc",    "exp",    "expm1",      "floor",     "frac",
    "lerp",    "lgamma", "log",  "log10",   "log1p",   "log2",    "maximum", "minimum",   "mul",       "neg",
    "pow",     "reciprocal", "round", "rsqrt", "sigmoid", "sign", "sin",    "sinh",       "sqrt",      "sub",
    "tan",     "tanh",  "trunc", "zero"};

}  // namespace

void add_foreach_rules(RuleTable& table) {
  for (const std::string name : kElementwise) {
    const auto single = table.find("aten::" + name);
    const auto rows = single != table.end() && single->second.localise == nullptr ? single->second.rows
                                                                                  : keep_elementwise_rows;
    table["aten::_foreach_" + name] = {.rows = rows, .per_element = true, .cuts = Cuts::kAny};
  }
  for (const char* name : {"aten::_fused_adam", "aten::_fused_adamw", "aten::_fused_sgd", "aten::_fused_adagrad"}) {
    table[name] = {.rows = keep_elementwise_rows, .per_element = true, .cuts = Cuts::kAny};
  }
  table["aten::_foreach_norm"] = {.rows = rows_of_something, .localise = localise_reduced<compute_norms>, .per_element = true};
  table["aten::_foreach_max"] = {
      .rows = rows_of_something, .localise = localise_reduced<compute_reduced<comm::ReduceOp::kMax>>, .per_element = true};
  table["aten::_foreach_powsum"] = {
      .rows = whole_rows, .localise = localise_reduced<compute_reduced<comm::ReduceOp::kSum>>, .per_element = true, .cuts = Cuts::kAny};
  table["aten::_amp_foreach_non_finite_check_and_unscale"] = {
      .rows = keep_elementwise_rows, .localise = localise_reduced<compute_unscale>, .per_element = true, .cuts = Cuts::kAny};
}

}  // namespace tessera::rules
