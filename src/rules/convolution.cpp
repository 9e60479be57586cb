// SPDX-License-Identifier: Apache-2.0
// Convolutions: sharded over the batch, the output channels or the input channels.
#include "rules/families.h"
#include "rules/rows.h"

namespace tessera::rules {
namespace {

bool channels_can_be_cut(const OpCall& call) {
  return call.named("groups").toInt() == 1 && !call.named("transposed").toBool();
}

/// The kernels refuse to work on no samples or no channels.
bool can_cut(const OpCall& call, int tensor, std::int64_t dim, int axis) {
  return leaves_no_rank_empty(call, call.tensor(tensor), dim, axis);
}

// convolution(input, weight [out, in, ...], bias?, ...)
void convolution_rows(const OpCall& call, int axis, Rows& rows) {
  if (sharded_dims(call, axis).empty()) return;
  if (can_cut(call, 0, 0, axis)) add_row(call, rows, {S(0), R, R}, {S(0)});
  if (!channels_can_be_cut(call)) return;
  if (can_cut(call, 1, 0, axis)) add_row(call, rows, {R, S(0), S(0)}, {S(1)});
  if (can_cut(call, 1, 1, axis)) add_row(call, rows, {S(1), S(1), P}, {P});
}

// convolution_backward(grad_output, input, weight, bias_sizes?, ...) -> (grad_input, grad_weight, grad_bias)
void convolution_backward_rows(const OpCall& call, int axis, Rows& rows) {
  if (sharded_dims(call, axis).empty()) return;
  if (can_cut(call, 1, 0, axis)) add_row(call, rows, {S(0), S(0), R}, {S(0), P, P});
  if (!channels_can_be_cut(call)) return;
  if (can_cut(call, 2, 0, axis)) add_row(call, rows, {S(1), R, S(0)}, {P, S(0), S(0)});
  if (can_cut(call, 2, 1, axis)) add_row(call, rows, {R, S(1), S(1)}, {S(1), S(1), R});
}

void localise_convolution_backward(const OpCall& call, Decision& decision) {
  const int index = call.index_of("bias_sizes");
  if (!call.argument(index).isIntList()) return;
  const auto global = call.argument(index).toDimVector();
  if (global.size() != 1) return;
  const Sizes local{tensor::local_extent(global[0], 0, decision.outputs[2], call.mesh).length};
  decision.edits.emplace_back(index, int_list(local));
}

std::vector<Sizes> convolution_backward_sizes(const OpCall& call) {
  const at::IntArrayRef input = call.tensor(1).sizes;
  const at::IntArrayRef weight = call.tensor(2).sizes;
  return {Sizes(input.begin(), input.end()), Sizes(weight.begin(), weight.end()), Sizes{call.tensor(0).sizes[1]}};
}

}  // namespace

void add_convolution_rules(RuleTable& table) {
  table["aten::convolution"] = {.rows = convolution_rows};
  table["aten::convolution_backward"] = {.rows = convolution_backward_rows,
                                         .localise = localise_convolution_backward,
                                         .output_sizes = convolution_backward_sizes};
}

}  // namespace tessera::rules
