// SPDX-License-Identifier: Apache-2.0
// Pooling, interpolation and sampling of planes: batch and channels may be sharded.
#include "rules/families.h"
#include "rules/rows.h"

namespace tessera::rules {
namespace {

/// Every tensor is cut along the same dim, which stands before the last `Spatial` ones.
template <std::int64_t Spatial>
void plane_rows(const OpCall& call, int axis, Rows& rows) {
  for (const std::int64_t dim : sharded_dims(call, axis)) {
    if (dim >= call.tensor(0).dim() - Spatial) continue;
    if (leaves_no_rank_empty(call, call.tensor(0), dim, axis)) add_uniform_row(call, rows, S(dim), S(dim));
  }
}

// fractional_max_pool*(self [N, C, ..] or [C, ..], kernel_size, output_size, random_samples [N, C, d]) -> (output,
// indices)
template <std::int64_t Spatial>
void fractional_rows(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t dim = sharded_dim(call, 0, axis);
  const bool plane = dim >= call.tensor(0).dim() - Spatial;
  if (dim < 0 || plane || !leaves_no_rank_empty(call, call.tensor(0), dim, axis)) return;
  add_row(call, rows, {S(dim), R}, {S(dim), S(dim)});
}

/// The ranks that run a call: on a pipeline stage, those of the stage.
const comm::Communicator& ranks_of(const Decision& decision, const Mesh& mesh) {
  if (decision.stages == 0) return mesh.everyone();
  unsigned axes = 0;
  for (int axis = 0; axis < mesh.num_axes(); ++axis) {
    if (mesh.axes()[static_cast<std::size_t>(axis)].name != "pp") axes |= 1U << static_cast<unsigned>(axis);
  }
  return mesh.across(axes);
}

/// The samples may come from torch::rand, as torch::nn::FractionalMaxPool2d draws them: a plain tensor that differs
/// from rank to rank. Those of the first rank that computes count. decision.notes: offset and length of this rank's part of their first two dims.
void compute_fractional(const c10::OperatorHandle& op, const Decision& decision, const Mesh& mesh,
                        torch::jit::Stack& stack) {
  at::Tensor samples = stack.back().toTensor().clone(at::MemoryFormat::Contiguous);
  ranks_of(decision, mesh).broadcast(samples, 0);
  for (const int dim : {0, 1}) {
    samples = samples.narrow(dim, decision.notes[static_cast<std::size_t>(2 * dim)],
                             decision.notes[static_cast<std::size_t>(2 * dim + 1)]);
  }
  stack.back() = samples;
  op.callBoxed(stack);
}

template <std::int64_t Spatial>
void localise_fractional(const OpCall& call, Decision& decision) {
  const std::int64_t leading = call.tensor(0).dim() - Spatial;
  for (const std::int64_t dim : {0, 1}) {
    const std::int64_t size = call.tensor(1).sizes[static_cast<std::size_t>(dim)];
    // A sample without batch dim has one row of samples.
    const auto own = static_cast<int>(dim - (2 - leading));
    const Extent part = own < 0 ? Extent{0, size} : tensor::local_extent(size, own, decision.inputs[0], call.mesh);
    decision.notes.insert(decision.notes.end(), {part.offset, part.length});
  }
  decision.compute = compute_fractional;
}

/// upsample_*_backward(grad_output, output_size, input_size, ...): the sizes among the arguments are whole.
std::vector<Sizes> input_size_argument(const OpCall& call) {
  const auto sizes = call.named("input_size").toDimVector();
  return {Sizes(sizes.begin(), sizes.end())};
}

void localise_input_size(const OpCall& call, Decision& decision) {
  const Sizes local = tensor::local_sizes(input_size_argument(call)[0], decision.outputs[0], call.mesh);
  decision.edits.emplace_back(call.index_of("input_size"), int_list(local));
}

// grid_sampler_2d, grid_sampler_3d(input [N, C, ..], grid [N, .., d], ...)
void grid_rows(const OpCall& call, int axis, Rows& rows) {
  const auto dims = sharded_dims(call, axis);
  if (contains(dims, 0) && leaves_no_rank_empty(call, call.tensor(0), 0, axis))
    add_row(call, rows, {S(0), S(0)}, {S(0)});
  if (sharded_dim(call, 0, axis) == 1 && leaves_no_rank_empty(call, call.tensor(0), 1, axis)) {
    add_row(call, rows, {S(1), R}, {S(1)});
  }
}

// grid_sampler_*_backward(grad_output, input, grid, ...) -> (grad_input, grad_grid)
void grid_backward_rows(const OpCall& call, int axis, Rows& rows) {
  const auto dims = sharded_dims(call, axis);
  if (contains(dims, 0) && leaves_no_rank_empty(call, call.tensor(1), 0, axis)) {
    add_row(call, rows, {S(0), S(0), S(0)}, {S(0), S(0)});
  }
  const bool channels = sharded_dim(call, 0, axis) == 1 || sharded_dim(call, 1, axis) == 1;
  if (channels && leaves_no_rank_empty(call, call.tensor(1), 1, axis)) add_row(call, rows, {S(1), S(1), R}, {S(1), P});
}

}  // namespace

void add_resample_rules(RuleTable& table) {
  for (const char* name :
       {"aten::max_pool2d_with_indices", "aten::max_pool2d_with_indices_backward", "aten::avg_pool2d",
        "aten::avg_pool2d_backward", "aten::_adaptive_avg_pool2d", "aten::_adaptive_avg_pool2d_backward",
        "aten::adaptive_max_pool2d", "aten::adaptive_max_pool2d_backward", "aten::fractional_max_pool2d_backward",
        "aten::max_unpool2d"}) {
    table[name] = {.rows = plane_rows<2>};
  }
  for (const char* name :
       {"aten::max_pool3d_with_indices", "aten::max_pool3d_with_indices_backward", "aten::avg_pool3d",
        "aten::avg_pool3d_backward", "aten::_adaptive_avg_pool3d", "aten::_adaptive_avg_pool3d_backward",
        "aten::adaptive_max_pool3d", "aten::adaptive_max_pool3d_backward", "aten::fractional_max_pool3d_backward",
        "aten::max_unpool3d"}) {
    table[name] = {.rows = plane_rows<3>};
  }
  table["aten::fractional_max_pool2d"] = {.rows = fractional_rows<2>, .localise = localise_fractional<2>};
  table["aten::fractional_max_pool3d"] = {.rows = fractional_rows<3>, .localise = localise_fractional<3>};
  const auto add_upsample = [&](const std::string& name, void (*rows)(const OpCall&, int, Rows&)) {
    table[name] = {.rows = rows};
    table[name + "_backward"] = {.rows = rows, .localise = localise_input_size, .output_sizes = input_size_argument};
  };
  for (const char* name : {"aten::upsample_nearest1d", "aten::_upsample_nearest_exact1d", "aten::upsample_linear1d"}) {
    add_upsample(name, plane_rows<1>);
  }
  for (const char* name :
       {"aten::upsample_nearest2d", "aten::_upsample_nearest_exact2d", "aten::upsample_bilinear2d",
        "aten::upsample_bicubic2d", "aten::_upsample_bilinear2d_aa", "aten::_upsample_bicubic2d_aa"}) {
    add_upsample(name, plane_rows<2>);
  }
  for (const char* name :
       {"aten::upsample_nearest3d", "aten::_upsample_nearest_exact3d", "aten::upsample_trilinear3d"}) {
    add_upsample(name, plane_rows<3>);
  }
  for (const char* name : {"aten::grid_sampler_2d", "aten::grid_sampler_3d"}) {
    table[name] = {.rows = grid_rows};
    table[std::string(name) + "_backward"] = {.rows = grid_backward_rows};
  }
}

}  // namespace tessera::rules
