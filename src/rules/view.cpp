// SPDX-License-Identifier: Apache-2.0
// Views and rearrangements: where each sharded dim goes. What would cut or move a sharded dim is redistributed first.
#include <ATen/ops/squeeze.h>

#include "rules/families.h"
#include "rules/rows.h"
#include "rules/view_map.h"
#include "tessera/base/error.h"

namespace tessera::rules {
namespace {

/// Maps a sharded dim of the (first) input to the output; -1 if the shard cannot stay.
using DimMap = std::int64_t (*)(const OpCall& call, std::int64_t dim);

/// Rows for one input that goes through `Map`; views are linear, so partial sums stay too.
template <DimMap Map>
void mapped_rows(const OpCall& call, int axis, Rows& rows) {
  if (call.tensor(0).placements[axis].is_partial()) {
    const Placement partial = call.tensor(0).placements[axis];
    add_row(call, rows, {partial}, {partial});
  }
  const std::int64_t dim = sharded_dim(call, 0, axis);
  const std::int64_t out = dim < 0 ? -1 : Map(call, dim);
  if (out >= 0) add_row(call, rows, {S(dim)}, {S(out)});
}

std::int64_t dims_of(const OpCall& call) { return call.tensor(0).dim(); }

std::int64_t transpose_map(const OpCall& call, std::int64_t dim) {
  const std::int64_t a = wrap_dim(call.argument(1).toInt(), dims_of(call));
  const std::int64_t b = wrap_dim(call.argument(2).toInt(), dims_of(call));
  return dim == a ? b : dim == b ? a : dim;
}

std::int64_t t_map(const OpCall& call, std::int64_t dim) { return dims_of(call) == 2 ? 1 - dim : dim; }

std::int64_t permute_map(const OpCall& call, std::int64_t dim) {
  const auto order = call.argument(1).toDimVector();
  for (std::size_t out = 0; out < order.size(); ++out) {
    if (wrap_dim(order[out], dims_of(call)) == dim) return static_cast<std::int64_t>(out);
  }
  return -1;
}

std::int64_t unsqueeze_map(const OpCall& call, std::int64_t dim) {
  const std::int64_t inserted = wrap_dim(call.argument(1).toInt(), dims_of(call) + 1);
  return dim >= inserted ? dim + 1 : dim;
}

/// Dims that squeeze removes, judged by global sizes: a shard of length 1 is no dim of size 1.
c10::SmallVector<std::int64_t, 6> squeezed_dims(const OpCall& call) {
  // squeeze() takes all dims, squeeze(dims) of an empty list none.
  const bool lists_none = call.arguments.size() > 1 && call.argument(1).isIntList() && call.argument(1).toDimVector().empty();
  if (lists_none) return {};
  const auto asked = dims_argument(call.arguments.size() > 1 ? call.argument(1) : c10::IValue(), dims_of(call));
  c10::SmallVector<std::int64_t, 6> dims;
  for (const std::int64_t dim : asked) {
    if (call.tensor(0).sizes[static_cast<std::size_t>(dim)] == 1) dims.push_back(dim);
  }
  return dims;
}

std::int64_t squeeze_map(const OpCall& call, std::int64_t dim) {
  const auto removed = squeezed_dims(call);
  if (contains(removed, dim)) return -1;
  return dim - std::count_if(removed.begin(), removed.end(), [&](std::int64_t other) { return other < dim; });
}

void compute_squeeze(const c10::OperatorHandle& op, const Decision& decision, const Mesh&, torch::jit::Stack& stack) {
  const auto arguments = pop_arguments(op, stack);
  stack.emplace_back(at::squeeze(arguments[0].toTensor(), decision.notes));
}

void localise_squeeze(const OpCall& call, Decision& decision) {
  const auto removed = squeezed_dims(call);
  decision.notes.assign(removed.begin(), removed.end());
  decision.compute = compute_squeeze;
}

/// The dim argument of select, unbind: it disappears.
std::int64_t removed_dim_map(const OpCall& call, std::int64_t dim) {
  const std::int64_t removed = wrap_dim(call.named("dim").toInt(), dims_of(call));
  return dim == removed ? -1 : dim > removed ? dim - 1 : dim;
}

/// The dim argument of slice, split: it is cut.
std::int64_t cut_dim_map(const OpCall& call, std::int64_t dim) {
  return dim == wrap_dim(call.named("dim").toInt(), dims_of(call)) ? -1 : dim;
}

// unfold(self, dimension, size, step): the dim is cut into windows, whose elements become the last dim.
std::int64_t unfold_map(const OpCall& call, std::int64_t dim) {
  return dim == wrap_dim(call.named("dimension").toInt(), dims_of(call)) ? -1 : dim;
}

/// diagonal(self, offset, dim1, dim2): both dims disappear, the diagonal becomes the last dim.
std::int64_t diagonal_map(const OpCall& call, std::int64_t dim) {
  const std::int64_t first = wrap_dim(call.named("dim1").toInt(), dims_of(call));
  const std::int64_t second = wrap_dim(call.named("dim2").toInt(), dims_of(call));
  if (dim == first || dim == second) return -1;
  return dim - (first < dim ? 1 : 0) - (second < dim ? 1 : 0);
}

/// Complex numbers as pairs and back: the last dim of the pairs is what makes one number.
std::int64_t as_pairs_map(const OpCall&, std::int64_t dim) { return dim; }
std::int64_t from_pairs_map(const OpCall& call, std::int64_t dim) { return dim == dims_of(call) - 1 ? -1 : dim; }

std::int64_t expand_map(const OpCall& call, std::int64_t dim) {
  const auto out_dims = static_cast<std::int64_t>(call.argument(1).toDimVector().size());
  return call.tensor(0).sizes[static_cast<std::size_t>(dim)] == 1 ? -1 : dim + out_dims - dims_of(call);
}

std::vector<Sizes> expand_sizes(const OpCall& call) {
  const auto asked = call.argument(1).toDimVector();
  const at::IntArrayRef input = call.tensor(0).sizes;
  Sizes sizes(asked.begin(), asked.end());
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] == -1) sizes[i] = input[i - (sizes.size() - input.size())];
  }
  return {sizes};
}

/// view.dtype(self, dtype) reinterprets the bytes; only the last dim may change its length.
bool reinterprets(const OpCall& call) { return !call.argument(1).isIntList(); }

std::vector<Sizes> view_sizes(const OpCall& call) {
  if (reinterprets(call)) return {};
  return {infer_view_sizes(call.argument(1).toDimVector(), c10::multiply_integers(call.tensor(0).sizes))};
}

std::int64_t view_map(const OpCall& call, std::int64_t dim) {
  if (reinterprets(call)) return dim == dims_of(call) - 1 ? -1 : dim;
  const std::int64_t shards = tensor::num_shards(static_cast<int>(dim), call.tensor(0).placements, call.mesh);
  return map_view_dim(call.tensor(0).sizes, view_sizes(call)[0], dim, shards);
}

/// _reshape_alias(self, size, stride): the strides are those of the whole; the shard has its own for the same view.
void compute_alias(const c10::OperatorHandle& op, const Decision&, const Mesh&, torch::jit::Stack& stack) {
  const auto arguments = pop_arguments(op, stack);
  stack.emplace_back(arguments[0].toTensor().reshape(arguments[1].toIntVector()));
}

template <std::vector<Sizes> (*OutputSizes)(const OpCall&)>
void localise_sizes(const OpCall& call, Decision& decision) {
  const auto sizes = OutputSizes(call);
  if (sizes.empty()) return;
  const Sizes& global = sizes[0];
  decision.edits.emplace_back(1, int_list(tensor::local_sizes(global, decision.outputs[0], call.mesh)));
}

// slice_backward(grad, input_sizes, dim, start, end, step); select_backward(grad, input_sizes, dim, index)
std::vector<Sizes> input_sizes_argument(const OpCall& call) {
  const auto sizes = call.named("input_sizes").toDimVector();
  return {Sizes(sizes.begin(), sizes.end())};
}

std::int64_t select_backward_map(const OpCall& call, std::int64_t dim) {
  const std::int64_t restored = wrap_dim(call.named("dim").toInt(), dims_of(call) + 1);
  return dim >= restored ? dim + 1 : dim;
}

/// cat and stack: every tensor lies alike, along another dim than the one joined.
void joined_rows(const OpCall& call, int axis, Rows& rows, bool stacks) {
  std::int64_t dims = 0;
  for (const TensorArg& tensor : call.tensors) dims = std::max(dims, tensor.dim());
  const std::int64_t joined = wrap_dim(call.named("dim").toInt(), dims + (stacks ? 1 : 0));
  const bool all_partial = std::all_of(call.tensors.begin(), call.tensors.end(),
                                       [&](const TensorArg& tensor) { return tensor.placements[axis] == P; });
  const auto offer = [&](Placement input, Placement output) {
    Row row;
    // cat still takes empty vectors beside tensors of more dims, for the sake of old programs.
    for (const TensorArg& tensor : call.tensors) row.inputs.push_back(tensor.dim() == dims ? input : R);
    row.outputs.resize(static_cast<std::size_t>(call.num_outputs()), output);
    rows.push_back(std::move(row));
  };
  if (all_partial) offer(P, P);
  for (const std::int64_t dim : sharded_dims(call, axis)) {
    const bool of_an_empty_vector = std::none_of(call.tensors.begin(), call.tensors.end(), [&](const TensorArg& tensor) {
      return tensor.dim() == dims && tensor.placements[axis].is_shard(dim);
    });
    if (of_an_empty_vector) continue;
    if (stacks) {
      offer(S(dim), S(dim >= joined ? dim + 1 : dim));
    } else if (dim != joined) {
      offer(S(dim), S(dim));
    }
  }
}
void cat_rows(const OpCall& call, int axis, Rows& rows) { joined_rows(call, axis, rows, /*stacks=*/false); }
void stack_rows(const OpCall& call, int axis, Rows& rows) { joined_rows(call, axis, rows, /*stacks=*/true); }

void localise_view(const OpCall& call, Decision& decision) {
  localise_sizes<view_sizes>(call, decision);
  // The shard, or what it is gathered to, may be laid out otherwise than the whole shows.
  const auto ambiguous = [&](const Placements& placements) {
    return tensor::strides_are_ambiguous(placements, call.mesh, call.tensor(0).sizes);
  };
  const bool gathers = !(call.tensor(0).placements == decision.inputs[0]);
  const bool maybe_copies = gathers || ambiguous(call.tensor(0).placements);
  if (maybe_copies && !reinterprets(call)) decision.compute = compute_alias;
}

void localise_alias(const OpCall& call, Decision& decision) {
  localise_sizes<view_sizes>(call, decision);
  decision.compute = compute_alias;
}

/// as_strided(self, size, stride, storage_offset) that changes nothing but the strides of dims of size 1: LibTorch marks a
/// memory format with it.
bool keeps_memory(const OpCall& call) {
  const TensorArg& tensor = call.tensor(0);
  const auto sizes = call.argument(1).toDimVector();
  const auto strides = call.argument(2).toDimVector();
  if (at::IntArrayRef(sizes) != tensor.sizes) return false;
  for (std::size_t dim = 0; dim < sizes.size(); ++dim) {
    if (sizes[dim] > 1 && strides[dim] != tensor.strides[dim]) return false;
  }
  return call.argument(3).isNone() || call.argument(3).toInt() == tensor.offset;
}

std::int64_t as_strided_map(const OpCall& call, std::int64_t dim) { return keeps_memory(call) ? dim : -1; }

void compute_same_memory(const c10::OperatorHandle& op, const Decision&, const Mesh&, torch::jit::Stack& stack) {
  stack.emplace_back(pop_arguments(op, stack)[0].toTensor().alias());
}

/// Global strides say nothing about a shard's memory.
void localise_as_strided(const OpCall& call, Decision& decision) {
  if (keeps_memory(call)) {
    decision.compute = compute_same_memory;
    return;
  }
  const auto is_whole = [](Placement placement) { return !placement.is_shard() && !placement.is_partial(); };
  for (int axis = 0; axis < call.mesh.num_axes(); ++axis) {
    check<ShapeError>(is_whole(call.tensor(0).placements[axis]) && is_whole(decision.outputs[0][axis]),
                      "{}: as_strided has no meaning for a tensor that is {} on axis {}; redistribute it first, or use "
                      "a view operator",
                      call.schema.name(), to_string(call.tensor(0).placements[axis]),
                      call.mesh.axes()[static_cast<std::size_t>(axis)].name);
  }
}

}  // namespace

void add_view_rules(RuleTable& table) {
  table["aten::transpose"] = {.rows = mapped_rows<transpose_map>};
  table["aten::t"] = {.rows = mapped_rows<t_map>};
  table["aten::permute"] = {.rows = mapped_rows<permute_map>};
  table["aten::unsqueeze"] = {.rows = mapped_rows<unsqueeze_map>};
  table["aten::squeeze"] = {.rows = mapped_rows<squeeze_map>, .localise = localise_squeeze};
  table["aten::expand"] = {
      .rows = mapped_rows<expand_map>, .localise = localise_sizes<expand_sizes>, .output_sizes = expand_sizes};
  for (const char* name : {"aten::view", "aten::_unsafe_view", "aten::reshape", "aten::_reshape_copy"}) {
    table[name] = {
        .rows = mapped_rows<view_map>, .localise = localise_view, .output_sizes = view_sizes};
  }
  table["aten::_reshape_alias"] = {
      .rows = mapped_rows<view_map>, .localise = localise_alias, .output_sizes = view_sizes};
  for (const char* name : {"aten::select", "aten::unbind"}) table[name] = {.rows = mapped_rows<removed_dim_map>};
  table["aten::unfold"] = {.rows = mapped_rows<unfold_map>};
  table["aten::diagonal"] = {.rows = mapped_rows<diagonal_map>};
  table["aten::view_as_real"] = {.rows = mapped_rows<as_pairs_map>};
  table["aten::view_as_complex"] = {.rows = mapped_rows<from_pairs_map>};
  for (const char* name : {"aten::slice", "aten::split", "aten::split_with_sizes", "aten::unsafe_split",
                           "aten::unsafe_split_with_sizes", "aten::narrow_copy"}) {
    table[name] = {.rows = mapped_rows<cut_dim_map>};
  }
  table["aten::slice_backward"] = {.rows = mapped_rows<cut_dim_map>,
                                   .localise = localise_sizes<input_sizes_argument>,
                                   .output_sizes = input_sizes_argument};
  table["aten::select_backward"] = {.rows = mapped_rows<select_backward_map>,
                                    .localise = localise_sizes<input_sizes_argument>,
                                    .output_sizes = input_sizes_argument};
  table["aten::cat"] = {.rows = cat_rows};
  table["aten::stack"] = {.rows = stack_rows};
  table["aten::as_strided"] = {.rows = mapped_rows<as_strided_map>, .localise = localise_as_strided};
}

}  // namespace tessera::rules
