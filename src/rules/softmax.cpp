// SPDX-License-Identifier: Apache-2.0
// Softmax and gated linear units, forward and backward. Softmax along a sharded dim sends one maximum and one sum per
// row instead of the row. Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3.
#include <ATen/ops/amax.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/full.h>
#include <ATen/ops/sum.h>

#include <limits>

#include "rules/families.h"
#include "rules/index_range.h"
#include "rules/rows.h"

namespace tessera::rules {
namespace {

void softmax_rows(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t along = worked_dim(call);
  other_dim_rows(call, axis, rows);
  if (!contains(sharded_dims(call, axis), along)) return;
  Row row;
  row.inputs.resize(call.tensors.size(), S(along));
  row.outputs.resize(static_cast<std::size_t>(call.num_outputs()), S(along));
  rows.push_back(std::move(row));
}

/// A dim that is cut over the ranks of `group`.
struct SpreadDim {
  std::int64_t dim;
  const comm::Communicator& group;

  [[nodiscard]] at::Tensor max(const at::Tensor& x) const {
    std::vector<std::int64_t> sizes = x.sizes().vec();
    sizes[static_cast<std::size_t>(dim)] = 1;
    // A rank may hold nothing of the dim.
    at::Tensor result = x.size(dim) > 0 ? at::amax(x, dim, /*keepdim=*/true)
                                        : at::full(sizes, -std::numeric_limits<double>::infinity(), x.options());
    group.all_reduce(result, comm::ReduceOp::kMax);
    return result;
  }
  [[nodiscard]] at::Tensor sum(const at::Tensor& x) const {
    at::Tensor result = at::sum(x, dim, /*keepdim=*/true);
    group.all_reduce(result);
    return result;
  }
};

/// 16-bit floats are worked on in float32, as LibTorch's kernels do.
at::Tensor widened(const at::Tensor& x) { return c10::isReducedFloatingType(x.scalar_type()) ? x.to(at::kFloat) : x; }

at::Tensor log_softmax(const at::Tensor& x, const SpreadDim& along) {
  const at::Tensor shifted = x.sub(along.max(x));
  return shifted.sub(along.sum(shifted.exp()).log_());
}
at::Tensor softmax(const at::Tensor& x, const SpreadDim& along) {
  const at::Tensor powers = x.sub(along.max(x)).exp_();
  return powers.div(along.sum(powers));
}
at::Tensor log_softmax_backward(const at::Tensor& gradient, const at::Tensor& output, const SpreadDim& along) {
  return gradient.sub(output.exp().mul_(along.sum(gradient)));
}
at::Tensor softmax_backward(const at::Tensor& gradient, const at::Tensor& output, const SpreadDim& along) {
  const at::Tensor product = gradient.mul(output);
  return product.sub(output.mul(along.sum(product)));
}

// _softmax(self, dim, half_to_float)
template <at::Tensor (*Formula)(const at::Tensor&, const SpreadDim&)>
void compute_forward(const c10::OperatorHandle& op, const Decision& decision, const Mesh& mesh,
                     torch::jit::Stack& stack) {
  const auto arguments = pop_arguments(op, stack);
  const at::Tensor x = arguments[0].toTensor();
  const at::Tensor result = Formula(widened(x), {decision.notes[0], mesh.across(static_cast<unsigned>(decision.notes[1]))});
  stack.emplace_back(arguments[2].toBool() ? result : result.to(x.scalar_type()));
}

// _softmax_backward_data(grad_output, output, dim, input_dtype)
template <at::Tensor (*Formula)(const at::Tensor&, const at::Tensor&, const SpreadDim&)>
void compute_backward(const c10::OperatorHandle& op, const Decision& decision, const Mesh& mesh,
                      torch::jit::Stack& stack) {
  const auto arguments = pop_arguments(op, stack);
  const at::Tensor result = Formula(widened(arguments[0].toTensor()), widened(arguments[1].toTensor()),
                                    {decision.notes[0], mesh.across(static_cast<unsigned>(decision.notes[1]))});
  stack.emplace_back(result.to(arguments[3].toScalarType()));
}

template <tensor::Compute Spread>
void localise_softmax(const OpCall& call, Decision& decision) {
  const std::int64_t along = worked_dim(call);
  const unsigned axes = axes_cutting(decision.inputs[0], along);
  if (axes == 0) return;
  decision.notes = {along, axes};
  decision.compute = Spread;
}

/// glu(self, dim): both halves are needed at the same places, so a shard in two groups has them.
void glu_row(const OpCall& call, int axis, Rows& rows, int halves, bool backward) {
  const std::int64_t along = worked_dim(call);
  Placement both = call.tensor(halves).placements[axis];
  if (!both.is_shard(along) || both.cut.groups % 2 != 0) return;
  for (int other = 0; other < call.mesh.num_axes(); ++other) {
    if (other != axis && call.tensor(halves).placements[other].is_shard(along)) return;
  }
  const std::int64_t size = call.tensor(halves).sizes[static_cast<std::size_t>(along)] / 2;
  Cut half = both.cut;
  half.groups /= 2;
  const Placement one = Shard(along, tensor::canonical_cut(half, size, call.mesh.axis_size(axis)));
  backward ? add_row(call, rows, {one, both}, {both}) : add_row(call, rows, {both}, {one});
}

void glu_rows(const OpCall& call, int axis, Rows& rows) {
  for (const Placement& here : sharded_placements(call, axis)) {
    if (here.dim != worked_dim(call)) add_uniform_row(call, rows, here, here);
  }
  // glu_backward(grad_output, self, dim)
  const bool backward = call.num_tensors() == 2;
  glu_row(call, axis, rows, backward ? 1 : 0, backward);
}

std::vector<Sizes> glu_sizes(const OpCall& call) {
  const bool backward = call.num_tensors() == 2;
  const at::IntArrayRef halves = call.tensor(backward ? 1 : 0).sizes;
  Sizes sizes(halves.begin(), halves.end());
  if (!backward) sizes[static_cast<std::size_t>(worked_dim(call))] /= 2;
  return {sizes};
}

}  // namespace

void add_softmax_rules(RuleTable& table) {
  table["aten::_softmax"] = {.rows = softmax_rows, .localise = localise_softmax<compute_forward<softmax>>, .cuts = Cuts::kAny};
  table["aten::_log_softmax"] = {.rows = softmax_rows, .localise = localise_softmax<compute_forward<log_softmax>>, .cuts = Cuts::kAny};
  table["aten::_softmax_backward_data"] = {.rows = softmax_rows,
                                           .localise = localise_softmax<compute_backward<softmax_backward>>, .cuts = Cuts::kAny};
  table["aten::_log_softmax_backward_data"] = {.rows = softmax_rows,
                                               .localise = localise_softmax<compute_backward<log_softmax_backward>>, .cuts = Cuts::kAny};
  table["aten::_safe_softmax"] = {.rows = other_dim_rows, .cuts = Cuts::kAny};
  table["aten::glu"] = table["aten::glu_backward"] = {
      .rows = glu_rows, .output_sizes = glu_sizes, .cuts = Cuts::kSeen};
}

}  // namespace tessera::rules
