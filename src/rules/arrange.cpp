// SPDX-License-Identifier: Apache-2.0
// Copies that move, repeat, mask or pad elements: a dim along which nothing moves may be sharded.
#include "rules/families.h"
#include "rules/rows.h"

namespace tessera::rules {
namespace {

std::int64_t dims_of(const OpCall& call) { return call.tensor(0).dim(); }

c10::SmallVector<std::int64_t, 6> named_dims(const OpCall& call) {
  return dims_argument(call.named("dims"), dims_of(call));
}

/// Linear in its only tensor, and cut along `dim` it gives what is cut along `out`.
void linear_rows(const OpCall& call, int axis, Rows& rows, std::int64_t dim, std::int64_t out) {
  if (call.tensor(0).placements[axis] == P) add_row(call, rows, {P}, {P});
  if (dim >= 0 && out >= 0) add_row(call, rows, {S(dim)}, {S(out)});
}

// flip(self, dims), roll(self, shifts, dims), rot90(self, k, dims)
void moved_rows(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t dim = sharded_dim(call, 0, axis);
  const auto value = call.named("dims");
  // flip over no dims moves nothing; roll over no dims rolls the flattened tensor.
  const bool moves_none = value.isIntList() && value.toDimVector().empty() && call.index_of("shifts") < 0;
  const bool stays = dim >= 0 && (moves_none || !contains(named_dims(call), dim));
  linear_rows(call, axis, rows, dim, stays ? dim : -1);
}

// repeat(self, repeats)
void repeat_rows(const OpCall& call, int axis, Rows& rows) {
  const auto repeats = call.named("repeats").toDimVector();
  const std::int64_t dim = sharded_dim(call, 0, axis);
  const std::int64_t out = dim < 0 ? -1 : dim + static_cast<std::int64_t>(repeats.size()) - dims_of(call);
  const bool stays = out >= 0 && repeats[static_cast<std::size_t>(out)] == 1;
  linear_rows(call, axis, rows, dim, stays ? out : -1);
}

// tril(self, diagonal), triu(self, diagonal)
void triangle_rows(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t dim = sharded_dim(call, 0, axis);
  linear_rows(call, axis, rows, dim, dim);
  if (dim >= dims_of(call) - 2) rows.back().counts_places = true;
}

/// A shard of the matrix begins `offset` rows down or columns right: its diagonal is elsewhere.
void localise_triangle(const OpCall& call, Decision& decision) {
  const auto dims = static_cast<int>(dims_of(call));
  const auto offset = [&](int dim) {
    const std::int64_t size = call.tensor(0).sizes[static_cast<std::size_t>(dim)];
    return tensor::local_extent(size, dim, decision.inputs[0], call.mesh).offset;
  };
  if (!shards_dim(decision.inputs[0], dims - 2) && !shards_dim(decision.inputs[0], dims - 1)) return;
  decision.edits.emplace_back(call.index_of("diagonal"),
                              call.named("diagonal").toInt() + offset(dims - 2) - offset(dims - 1));
}

// constant_pad_nd(self, pad, value): pairs of lengths, the last dim first.
void constant_pad_rows(const OpCall& call, int axis, Rows& rows) {
  const auto padding = call.named("pad").toDimVector();
  const c10::IValue& value = call.named("value");
  const bool zeros = value.isInt() && value.toInt() == 0;
  if (zeros && call.tensor(0).placements[axis] == P) add_row(call, rows, {P}, {P});
  const std::int64_t dim = sharded_dim(call, 0, axis);
  if (dim < 0) return;
  const auto pair = static_cast<std::size_t>(2 * (dims_of(call) - 1 - dim));
  const bool padded = pair + 1 < padding.size() && (padding[pair] != 0 || padding[pair + 1] != 0);
  if (!padded) add_row(call, rows, {S(dim)}, {S(dim)});
}

/// reflection_pad1d to 3d and replication_pad1d to 3d, forward (self, padding) and backward (grad_output, self,
/// padding): the padded dims are the last ones.
void plane_pad_rows(const OpCall& call, int axis, Rows& rows) {
  const auto padded = static_cast<std::int64_t>(call.named("padding").toDimVector().size() / 2);
  for (const std::int64_t dim : sharded_dims(call, axis)) {
    const bool possible = dim < dims_of(call) - padded && leaves_no_rank_empty(call, call.tensor(0), dim, axis);
    if (possible) add_uniform_row(call, rows, S(dim), S(dim));
  }
}

// unfold_backward(grad_in, input_sizes, dim, size, step): the windows' dim is the last one.
void unfold_backward_rows(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t dim = sharded_dim(call, 0, axis);
  const std::int64_t worked = wrap_dim(call.named("dim").toInt(), dims_of(call) - 1);
  const bool stays = dim >= 0 && dim != worked && dim != dims_of(call) - 1;
  linear_rows(call, axis, rows, dim, stays ? dim : -1);
}

/// Restored dims of diagonal_backward(grad_output, input_sizes, offset, dim1, dim2) and diag_embed(self, offset, dim1,
/// dim2): the last dim of the input becomes two, the others keep their order.
std::int64_t embedded_dim(const OpCall& call, std::int64_t dim) {
  const std::int64_t out_dims = dims_of(call) + 1;
  if (dim < 0 || dim == dims_of(call) - 1) return -1;
  const std::int64_t first = wrap_dim(call.named("dim1").toInt(), out_dims);
  const std::int64_t second = wrap_dim(call.named("dim2").toInt(), out_dims);
  std::int64_t out = 0;
  for (std::int64_t passed = -1;; ++out) {
    if (out != first && out != second && ++passed == dim) return out;
  }
}
void diagonal_embed_rows(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t dim = sharded_dim(call, 0, axis);
  linear_rows(call, axis, rows, dim, embedded_dim(call, dim));
}

// diagonal_scatter(self, src, offset, dim1, dim2)
void diagonal_scatter_rows(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t dim = sharded_dim(call, 0, axis);
  const std::int64_t first = wrap_dim(call.named("dim1").toInt(), dims_of(call));
  const std::int64_t second = wrap_dim(call.named("dim2").toInt(), dims_of(call));
  if (dim < 0 || dim == first || dim == second) return;
  add_row(call, rows, {S(dim), S(dim - (first < dim ? 1 : 0) - (second < dim ? 1 : 0))}, {S(dim)});
}

std::vector<Sizes> input_sizes_argument(const OpCall& call) {
  const auto sizes = call.named("input_sizes").toDimVector();
  return {Sizes(sizes.begin(), sizes.end())};
}

void localise_input_sizes(const OpCall& call, Decision& decision) {
  const Sizes global = input_sizes_argument(call)[0];
  decision.edits.emplace_back(call.index_of("input_sizes"),
                              int_list(tensor::local_sizes(global, decision.outputs[0], call.mesh)));
}

/// Rearrangements within the last dims: pixel_shuffle, pixel_unshuffle and channel_shuffle mix the last three, im2col
/// [N, C, H, W] and col2im [N, C, L] leave the batch alone.
template <std::int64_t Mixed>
void leading_rows(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t dim = sharded_dim(call, 0, axis);
  const bool stays = dim >= 0 && dim < dims_of(call) - Mixed && leaves_no_rank_empty(call, call.tensor(0), dim, axis);
  linear_rows(call, axis, rows, dim, stays ? dim : -1);
}

// block_diag(tensors): linear; blocks that are cut come out at places that no placement describes.
void block_diagonal_rows(const OpCall& call, int axis, Rows& rows) {
  const auto partial = [&](const TensorArg& tensor) { return tensor.placements[axis] == P; };
  if (std::all_of(call.tensors.begin(), call.tensors.end(), partial)) add_uniform_row(call, rows, P, P);
}

// resize_as(self, the_template) of equal sizes changes nothing, however the template lies.
void resize_rows(const OpCall& call, int axis, Rows& rows) {
  if (call.tensor(0).sizes != call.tensor(1).sizes) return;
  const Placement here = call.tensor(0).placements[axis];
  add_row(call, rows, {here, call.tensor(1).placements[axis]}, {here});
}
void compute_unchanged(const c10::OperatorHandle& op, const Decision&, const Mesh&, torch::jit::Stack& stack) {
  stack.emplace_back(pop_arguments(op, stack)[0].toTensor().clone());
}
void localise_resize(const OpCall& call, Decision& decision) {
  if (call.tensor(0).sizes == call.tensor(1).sizes) decision.compute = compute_unchanged;
}

}  // namespace

void add_arrange_rules(RuleTable& table) {
  for (const char* name : {"aten::flip", "aten::roll", "aten::rot90"}) table[name] = {.rows = moved_rows, .cuts = Cuts::kAny};
  table["aten::block_diag"] = {.rows = block_diagonal_rows};
  table["aten::resize_as"] = {.rows = resize_rows, .localise = localise_resize};
  table["aten::repeat"] = {.rows = repeat_rows, .cuts = Cuts::kAny};
  for (const char* name : {"aten::tril", "aten::triu"}) {
    table[name] = {.rows = triangle_rows, .localise = localise_triangle, .cuts = Cuts::kAny};
  }
  table["aten::constant_pad_nd"] = {.rows = constant_pad_rows, .cuts = Cuts::kAny};
  for (const char* kind : {"reflection", "replication"}) {
    for (const char* dims : {"1d", "2d", "3d"}) {
      const std::string name = std::string("aten::") + kind + "_pad" + dims;
      table[name] = table[name + "_backward"] = {.rows = plane_pad_rows};
    }
  }
  table["aten::unfold_backward"] = {
      .rows = unfold_backward_rows, .localise = localise_input_sizes, .output_sizes = input_sizes_argument};
  table["aten::diagonal_backward"] = {
      .rows = diagonal_embed_rows, .localise = localise_input_sizes, .output_sizes = input_sizes_argument};
  table["aten::diag_embed"] = {.rows = diagonal_embed_rows};
  table["aten::diagonal_scatter"] = {.rows = diagonal_scatter_rows};
  for (const char* name : {"aten::pixel_shuffle", "aten::pixel_unshuffle", "aten::channel_shuffle", "aten::im2col"}) {
    table[name] = {.rows = leading_rows<3>};
  }
  table["aten::col2im"] = {.rows = leading_rows<2>};
}

}  // namespace tessera::rules
