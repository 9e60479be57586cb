// SPDX-License-Identifier: Apache-2.0
// Layer norm and group norm: sharded along what they do not normalise over.
#include "rules/families.h"
#include "rules/rows.h"

namespace tessera::rules {
namespace {

// native_layer_norm(input, normalized_shape, weight?, bias?, eps) -> (output, mean, rstd)
void layer_norm_rows(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t normalised = static_cast<std::int64_t>(call.named("normalized_shape").toDimVector().size());
  const std::int64_t dim = sharded_dim(call, 0, axis);
  if (dim >= 0 && dim < call.tensor(0).dim() - normalised) add_row(call, rows, {S(dim), R, R}, {S(dim), S(dim), S(dim)});
}

// native_layer_norm_backward(grad_out, input, normalized_shape, mean, rstd, weight?, bias?, mask) -> (dx, dweight, dbias)
void layer_norm_backward_rows(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t normalised = static_cast<std::int64_t>(call.named("normalized_shape").toDimVector().size());
  for (const std::int64_t dim : sharded_dims(call, axis)) {
    if (dim >= call.tensor(1).dim() - normalised) continue;
    add_row(call, rows, {S(dim), S(dim), S(dim), S(dim), R, R}, {S(dim), P, P});
  }
}

/// Channels are dim 1 of inputs and statistics, and the only dim of weights.
bool cuts_channels(const OpCall& call, int axis) {
  return std::any_of(call.tensors.begin(), call.tensors.end(), [&](const TensorArg& tensor) {
    return tensor.defined && tensor.placements[axis].is_shard(tensor.dim() == 1 ? 0 : 1);
  });
}

/// Channels can be cut where somebody cuts them and the cut falls between groups on every rank.
bool can_cut_channels(const OpCall& call, int axis) {
  if (!cuts_channels(call, axis)) return false;
  std::int64_t parts = 1;
  for (int other = 0; other < call.mesh.num_axes(); ++other) {
    if (cuts_channels(call, other)) parts *= call.mesh.axis_size(other);
  }
  return call.named("group").toInt() % parts == 0;
}

// native_group_norm(input, weight?, bias?, N, C, HxW, group, eps) -> (output, mean [N, group], rstd [N, group])
void group_norm_rows(const OpCall& call, int axis, Rows& rows) {
  add_row(call, rows, {S(0), R, R}, {S(0), S(0), S(0)});
  if (can_cut_channels(call, axis)) add_row(call, rows, {S(1), S(0), S(0)}, {S(1), S(1), S(1)});
}

// native_group_norm_backward(grad_out, input, mean, rstd, weight?, N, C, HxW, group, mask) -> (dx, dweight, dbias)
void group_norm_backward_rows(const OpCall& call, int axis, Rows& rows) {
  add_row(call, rows, {S(0), S(0), S(0), S(0), R}, {S(0), P, P});
  if (can_cut_channels(call, axis)) add_row(call, rows, {S(1), S(1), S(1), S(1), S(0)}, {S(1), S(0), S(0)});
}

/// N, C and group are numbers of the call: they must be the shard's.
void localise_group_norm(const OpCall& call, Decision& decision) {
  const bool backward = call.num_tensors() == 5;
  const Placements& input = decision.inputs[backward ? 1 : 0];
  const std::int64_t channels = call.named("C").toInt();
  const auto edit = [&](const char* name, std::int64_t value) {
    decision.edits.emplace_back(call.index_of(name), value);
  };
  edit("N", tensor::local_extent(call.named("N").toInt(), 0, input, call.mesh).length);
  edit("C", tensor::local_extent(channels, 1, input, call.mesh).length);
  edit("group", call.named("group").toInt() / tensor::num_shards(1, input, call.mesh));
}

std::vector<Sizes> group_norm_sizes(const OpCall& call) {
  const at::IntArrayRef input = call.tensor(0).sizes;
  const std::int64_t groups = call.named("group").toInt();
  return {Sizes(input.begin(), input.end()), Sizes{input[0], groups}, Sizes{input[0], groups}};
}

// _weight_norm_interface(v, g, dim) -> (w, norms), _weight_norm_interface_backward(grad_w, v, g, norms, dim) -> (grad_v,
// grad_g): every index of `dim` has a norm of its own, and all tensors have as many dims.
void weight_norm_rows(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t dim = worked_dim(call);
  const bool follows = contains(sharded_dims(call, axis), dim);
  if (follows && leaves_no_rank_empty(call, call.tensor(0), dim, axis)) add_uniform_row(call, rows, S(dim), S(dim));
}

/// Rows cut only what some input has cut already, or nothing: offered cuts of replicated inputs would win ties.
template <void (*Offer)(const OpCall&, int, Rows&)>
void if_sharded(const OpCall& call, int axis, Rows& rows) {
  if (!sharded_dims(call, axis).empty()) Offer(call, axis, rows);
}

}  // namespace

void add_norm_rules(RuleTable& table) {
  table["aten::native_layer_norm"] = {.rows = layer_norm_rows, .cuts = Cuts::kAny};
  table["aten::native_layer_norm_backward"] = {.rows = layer_norm_backward_rows, .cuts = Cuts::kAny};
  for (const char* name : {"aten::_weight_norm_interface", "aten::_weight_norm_interface_backward"}) {
    table[name] = {.rows = weight_norm_rows};
  }
  table["aten::native_group_norm"] = {
      .rows = if_sharded<group_norm_rows>, .localise = localise_group_norm, .output_sizes = group_norm_sizes};
  table["aten::native_group_norm_backward"] = {.rows = if_sharded<group_norm_backward_rows>,
                                               .localise = localise_group_norm};
}

}  // namespace tessera::rules
