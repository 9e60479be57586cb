// SPDX-License-Identifier: Apache-2.0
// Softmax and gated linear units, forward and backward. Along a sharded dim softmax needs two numbers per row from the
// other ranks, the maximum and the sum; the rows themselves stay where they are.
#include <ATen/TensorOperators.h>
#include <ATen/ops/amax.h>
#include <ATen/ops/sum.h>

#include "rules/families.h"
#include "rules/rows.h"

namespace tessera::rules {
namespace {

std::int64_t worked_dim(const OpCall& call) { return wrap_dim(call.named("dim").toInt(), call.tensor(0).dim()); }

/// Every tensor and every output is sharded along the same dim, which is not the one worked along.
void other_dim_rows(const OpCall& call, int axis, Rows& rows) {
  for (const std::int64_t dim : sharded_dims(call, axis)) {
    if (dim != worked_dim(call)) add_uniform_row(call, rows, S(dim), S(dim));
  }
}

void softmax_rows(const OpCall& call, int axis, Rows& rows) {
  other_dim_rows(call, axis, rows);
  const std::int64_t dim = worked_dim(call);
  if (!contains(sharded_dims(call, axis), dim)) return;
  if (leaves_no_rank_empty(call, call.tensor(0), dim, axis)) add_uniform_row(call, rows, S(dim), S(dim));
}

/// decision.notes: the dim, then the axes that cut it.
at::Tensor reduced(at::Tensor tensor, const Decision& decision, const Mesh& mesh, comm::ReduceOp op) {
  tensor = tensor.contiguous();
  for (std::size_t i = 1; i < decision.notes.size(); ++i) {
    mesh.along(static_cast<int>(decision.notes[i])).all_reduce(tensor, op);
  }
  return tensor;
}

at::Tensor sum_over_all(const at::Tensor& tensor, const Decision& decision, const Mesh& mesh) {
  return reduced(at::sum(tensor, decision.notes[0], /*keepdim=*/true), decision, mesh, comm::ReduceOp::kSum);
}

// _softmax, _log_softmax(self, dim, half_to_float)
template <bool Logarithm>
void compute_softmax(const c10::OperatorHandle& op, const Decision& decision, const Mesh& mesh,
                     torch::jit::Stack& stack) {
  const auto arguments = pop_arguments(op, stack);
  const at::Tensor self = arguments[2].toBool() ? arguments[0].toTensor().to(at::kFloat) : arguments[0].toTensor();
  const at::Tensor maximum =
      reduced(at::amax(self, decision.notes[0], /*keepdim=*/true), decision, mesh, comm::ReduceOp::kMax);
  const at::Tensor shifted = self - maximum;
  const at::Tensor powers = shifted.exp();
  const at::Tensor sum = sum_over_all(powers, decision, mesh);
  stack.emplace_back(Logarithm ? shifted - sum.log() : powers / sum);
}

// _softmax_backward_data, _log_softmax_backward_data(grad_output, output, dim, input_dtype)
template <bool Logarithm>
void compute_softmax_backward(const c10::OperatorHandle& op, const Decision& decision, const Mesh& mesh,
                              torch::jit::Stack& stack) {
  const auto arguments = pop_arguments(op, stack);
  const at::Tensor gradient = arguments[0].toTensor();
  const at::Tensor output = arguments[1].toTensor();
  const at::Tensor result = Logarithm ? gradient - output.exp() * sum_over_all(gradient, decision, mesh)
                                      : output * (gradient - sum_over_all(gradient * output, decision, mesh));
  stack.emplace_back(result.to(arguments[3].toScalarType()));
}

template <tensor::Compute Work>
void localise_softmax(const OpCall& call, Decision& decision) {
  const std::int64_t dim = worked_dim(call);
  if (!shards_dim(decision.inputs[0], dim)) return;
  decision.notes = {dim};
  for (int axis = 0; axis < decision.inputs[0].size(); ++axis) {
    if (decision.inputs[0][axis].is_shard(dim)) decision.notes.push_back(axis);
  }
  decision.compute = Work;
}

}  // namespace

void add_softmax_rules(RuleTable& table) {
  table["aten::_softmax"] = {.rows = softmax_rows, .localise = localise_softmax<compute_softmax<false>>};
  table["aten::_log_softmax"] = {.rows = softmax_rows, .localise = localise_softmax<compute_softmax<true>>};
  table["aten::_softmax_backward_data"] = {.rows = softmax_rows,
                                           .localise = localise_softmax<compute_softmax_backward<false>>};
  table["aten::_log_softmax_backward_data"] = {.rows = softmax_rows,
                                               .localise = localise_softmax<compute_softmax_backward<true>>};
  for (const char* name : {"aten::_safe_softmax", "aten::glu", "aten::glu_backward"}) {
    table[name] = {.rows = other_dim_rows};
  }
}

}  // namespace tessera::rules
