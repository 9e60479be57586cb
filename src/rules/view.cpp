// SPDX-License-Identifier: Apache-2.0
// Views and rearrangements: where each sharded dim goes. What would cut or move a sharded dim is redistributed first.
#include <ATen/core/List.h>
#include <ATen/ops/split_with_sizes.h>
#include <ATen/ops/squeeze.h>

#include <algorithm>
#include <optional>

#include "rules/families.h"
#include "rules/rows.h"
#include "rules/view_map.h"

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
  const Placement here = call.tensor(0).placements[axis];
  const std::int64_t out = here.is_shard() ? Map(call, here.dim) : -1;
  if (out >= 0) add_row(call, rows, {here}, {Shard(out, here.cut)});
}

/// True if `axis` alone cuts the dim that it cuts of tensor `index`.
bool cuts_alone(const OpCall& call, int index, int axis) {
  const Placements& placements = call.tensor(index).placements;
  for (int other = 0; other < placements.size(); ++other) {
    if (other != axis && placements[other].is_shard(placements[axis].dim)) return false;
  }
  return true;
}

/// As many elements of `groups` equal parts of a dim: nothing if `count` cuts through one.
std::optional<std::int64_t> whole_groups(std::int64_t size, std::int64_t groups, std::int64_t count) {
  if (size == 0 || size % groups != 0 || count % (size / groups) != 0) return std::nullopt;
  return count / (size / groups);
}

/// `cut` of other many groups, of the same size.
Placement with_groups(const OpCall& call, int axis, Placement shard, std::int64_t group_size, std::int64_t groups) {
  shard.cut.groups = static_cast<std::int32_t>(groups);
  shard.cut = tensor::canonical_cut(shard.cut, group_size * groups, call.mesh.axis_size(axis));
  return shard;
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

/// The dim argument of slice, split.
std::int64_t dim_argument(const OpCall& call, std::int64_t dims) { return wrap_dim(call.named("dim").toInt(), dims); }

/// It is taken apart: only a dim that is cut in groups may be sharded there.
std::int64_t taken_dim_map(const OpCall& call, std::int64_t dim) {
  return dim == dim_argument(call, dims_of(call)) ? -1 : dim;
}

/// The part of a dim of `size` that slice(self, dim, start, end, step) and its backward form take; nothing if it has a step.
std::optional<Extent> sliced_extent(const OpCall& call, std::int64_t size) {
  if (call.named("step").toInt() != 1) return std::nullopt;
  const auto position = [&](const char* name, std::int64_t otherwise) {
    const c10::IValue& value = call.named(name);
    const std::int64_t index = value.isInt() ? value.toInt() : otherwise;
    return std::clamp<std::int64_t>(index < 0 ? index + size : index, 0, size);
  };
  const std::int64_t begin = position("start", 0);
  return Extent{begin, std::max<std::int64_t>(position("end", size) - begin, 0)};
}

/// The dim of tensor 0 that is taken apart, sharded in groups on `axis`.
bool takes_groups(const OpCall& call, int axis) {
  const Placement here = call.tensor(0).placements[axis];
  return here.is_shard(dim_argument(call, dims_of(call))) && here.cut.groups > 1 && cuts_alone(call, 0, axis);
}

void slice_rows(const OpCall& call, int axis, Rows& rows) {
  mapped_rows<taken_dim_map>(call, axis, rows);
  if (!takes_groups(call, axis)) return;
  const Placement here = call.tensor(0).placements[axis];
  const std::int64_t size = call.tensor(0).sizes[static_cast<std::size_t>(here.dim)];
  const auto taken = sliced_extent(call, size);
  if (!taken || taken->length == 0) return;
  const auto first = whole_groups(size, here.cut.groups, taken->offset);
  const auto count = whole_groups(size, here.cut.groups, taken->length);
  if (first && count) add_row(call, rows, {here}, {with_groups(call, axis, here, size / here.cut.groups, *count)});
}

/// The taken groups as positions in the shard. `whole` is the dim that is cut in groups, `shard` lies along it.
void localise_groups(const OpCall& call, Decision& decision, const Placements& shard, std::int64_t whole) {
  const auto dim = static_cast<int>(dim_argument(call, dims_of(call)));
  if (!shards_dim(shard, dim)) return;
  const Extent taken = *sliced_extent(call, whole);
  const std::int64_t local = tensor::local_length(whole, dim, shard, call.mesh);
  const std::int64_t begin = taken.offset * local / whole;
  decision.edits.emplace_back(call.index_of("start"), begin);
  decision.edits.emplace_back(call.index_of("end"), begin + taken.length * local / whole);
}

void localise_slice(const OpCall& call, Decision& decision) {
  const std::int64_t dim = dim_argument(call, dims_of(call));
  localise_groups(call, decision, decision.inputs[0], call.tensor(0).sizes[static_cast<std::size_t>(dim)]);
}

std::vector<Sizes> slice_sizes(const OpCall& call) {
  const auto dim = static_cast<std::size_t>(dim_argument(call, dims_of(call)));
  Sizes sizes(call.tensor(0).sizes.begin(), call.tensor(0).sizes.end());
  const auto taken = sliced_extent(call, sizes[dim]);
  if (!taken) return {};
  sizes[dim] = taken->length;
  return {sizes};
}

/// How long each part of split(self, split_size, dim) and split_with_sizes(self, split_sizes, dim) is; 0 if they differ.
std::int64_t equal_part(const OpCall& call) {
  const std::int64_t size = call.tensor(0).sizes[static_cast<std::size_t>(dim_argument(call, dims_of(call)))];
  if (call.argument(1).isInt()) {
    const std::int64_t part = call.argument(1).toInt();
    return part > 0 && size % part == 0 ? part : 0;
  }
  const auto parts = call.argument(1).toDimVector();
  const bool are_equal = std::all_of(parts.begin(), parts.end(), [&](std::int64_t part) { return part == parts[0]; });
  return !parts.empty() && are_equal ? parts[0] : 0;
}

void split_rows(const OpCall& call, int axis, Rows& rows) {
  mapped_rows<taken_dim_map>(call, axis, rows);
  const std::int64_t part = takes_groups(call, axis) ? equal_part(call) : 0;
  if (part == 0) return;
  const Placement here = call.tensor(0).placements[axis];
  const std::int64_t size = call.tensor(0).sizes[static_cast<std::size_t>(here.dim)];
  const auto count = whole_groups(size, here.cut.groups, part);
  if (count) add_row(call, rows, {here}, {with_groups(call, axis, here, size / here.cut.groups, *count)});
}

/// decision.notes: the dim, and how many equal parts it has.
void compute_split(const c10::OperatorHandle& op, const Decision& decision, const Mesh&, torch::jit::Stack& stack) {
  const auto arguments = pop_arguments(op, stack);
  const at::Tensor self = arguments[0].toTensor();
  const auto parts = static_cast<std::size_t>(decision.notes[1]);
  const std::vector<std::int64_t> sizes(parts, self.size(decision.notes[0]) / decision.notes[1]);
  c10::List<at::Tensor> list;
  for (const at::Tensor& part : at::split_with_sizes(self, sizes, decision.notes[0])) list.push_back(part);
  stack.emplace_back(std::move(list));
}

void localise_split(const OpCall& call, Decision& decision) {
  const std::int64_t dim = dim_argument(call, dims_of(call));
  if (!shards_dim(decision.inputs[0], dim)) return;
  decision.notes = {dim, call.tensor(0).sizes[static_cast<std::size_t>(dim)] / equal_part(call)};
  decision.compute = compute_split;
}

/// Sizes of each part where they are alike; else the dim that is taken apart is whole.
std::vector<Sizes> split_sizes(const OpCall& call) {
  Sizes sizes(call.tensor(0).sizes.begin(), call.tensor(0).sizes.end());
  sizes[static_cast<std::size_t>(dim_argument(call, dims_of(call)))] = equal_part(call);
  return {sizes};
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

std::int64_t reinterpreted_map(const OpCall& call, std::int64_t dim) { return dim == dims_of(call) - 1 ? -1 : dim; }

/// Into how many parts the cuts like that of `axis` divide its dim.
int plain_parts(const OpCall& call, int axis) {
  const Placements& placements = call.tensor(0).placements;
  int parts = 1;
  for (int other = 0; other < placements.size(); ++other) {
    if (placements[other] == placements[axis]) parts *= call.mesh.axis_size(other);
  }
  return parts;
}

/// Two shards in one group of a view go their ways independently if one chooses among blocks, evenly, and the other within
/// each block: a dim in front of the other, or the groups of the other. The latter must cut first.
bool choose_independently(const OpCall& call, int a, int b) {
  const TensorArg& tensor = call.tensor(0);
  const auto [outer, inner] = std::minmax(a, b);
  const Placement& blocks = tensor.placements[outer];
  const Placement& within = tensor.placements[inner];
  if (!blocks.cut.is_plain() || blocks.dim > within.dim) return false;
  const std::int64_t count = blocks.dim == within.dim ? within.cut.groups : tensor.sizes[static_cast<std::size_t>(blocks.dim)];
  return count % plain_parts(call, outer) == 0;
}

void view_rows(const OpCall& call, int axis, Rows& rows) {
  const TensorArg& tensor = call.tensor(0);
  const Placement here = tensor.placements[axis];
  if (!here.is_shard() || reinterprets(call)) return mapped_rows<reinterpreted_map>(call, axis, rows);
  const Sizes output = view_sizes(call)[0];
  if (const std::int64_t out = passed_through(tensor.sizes, output, here.dim); out >= 0) {
    add_row(call, rows, {here}, {Shard(out, here.cut)});
    return;
  }
  bool is_outer = false;
  for (int other = 0; other < tensor.placements.size(); ++other) {
    const Placement& placement = tensor.placements[other];
    const bool meets = placement.is_shard() && placement != here &&
                       same_view_group(tensor.sizes, output, placement.dim, here.dim);
    if (meets && !choose_independently(call, axis, other)) return;
    is_outer = is_outer || (meets && axis < other);
  }
  const int parts = plain_parts(call, axis);
  const auto there = map_view_shard(tensor.sizes, output, here, parts);
  if (!there) return;
  const bool is_even = tensor.sizes[static_cast<std::size_t>(here.dim)] % parts == 0 && there->cut.is_plain();
  const bool must_be_even = is_outer || parts != call.mesh.axis_size(axis);  // then what others leave is even, too
  if (is_even || !must_be_even) add_row(call, rows, {here}, {*there});
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

/// A slice of whole groups goes back among the others.
void slice_backward_rows(const OpCall& call, int axis, Rows& rows) {
  mapped_rows<taken_dim_map>(call, axis, rows);
  const Placement here = call.tensor(0).placements[axis];
  const std::int64_t dim = dim_argument(call, dims_of(call));
  if (!here.is_shard(dim) || !cuts_alone(call, 0, axis)) return;
  const auto whole = input_sizes_argument(call)[0][static_cast<std::size_t>(dim)];
  const auto taken = sliced_extent(call, whole);
  if (!taken || taken->length == 0 || taken->length % here.cut.groups != 0) return;
  const std::int64_t group = taken->length / here.cut.groups;
  if (whole % group != 0 || taken->offset % group != 0) return;
  add_row(call, rows, {here}, {with_groups(call, axis, here, group, whole / group)});
}

void localise_slice_backward(const OpCall& call, Decision& decision) {
  localise_sizes<input_sizes_argument>(call, decision);
  const std::int64_t dim = dim_argument(call, dims_of(call));
  localise_groups(call, decision, decision.outputs[0], input_sizes_argument(call)[0][static_cast<std::size_t>(dim)]);
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
  for (const Placement& here : sharded_placements(call, axis)) {
    const bool of_an_empty_vector = std::none_of(call.tensors.begin(), call.tensors.end(), [&](const TensorArg& tensor) {
      return tensor.dim() == dims && tensor.placements[axis] == here;
    });
    if (of_an_empty_vector) continue;
    if (stacks) {
      offer(here, Shard(here.dim >= joined ? here.dim + 1 : here.dim, here.cut));
    } else if (here.dim != joined) {
      offer(here, here);
    }
  }
}

/// Another axis cuts the joined dim of some tensor, too.
bool joined_dim_is_cut_again(const OpCall& call, int axis, std::int64_t joined) {
  return std::any_of(call.tensors.begin(), call.tensors.end(), [&](const TensorArg& tensor) {
    for (int other = 0; other < tensor.placements.size(); ++other) {
      if (other != axis && tensor.placements[other].is_shard(joined)) return true;
    }
    return false;
  });
}

/// Tensors along `joined` that are cut like the first that lies as `shard`, in groups of one size: side by side they are cut
/// in all their groups.
void joined_groups_row(const OpCall& call, int axis, const Placement& shard, Rows& rows) {
  const std::int64_t joined = shard.dim;
  const auto like = std::find_if(call.tensors.begin(), call.tensors.end(),
                                 [&](const TensorArg& tensor) { return tensor.placements[axis] == shard; });
  const bool applies = joined == dim_argument(call, like->dim()) && !joined_dim_is_cut_again(call, axis, joined);
  const std::int64_t group = applies ? like->sizes[static_cast<std::size_t>(joined)] / shard.cut.groups : 0;
  std::int64_t groups = 0;
  Row row;
  for (const TensorArg& tensor : call.tensors) {
    const bool fits = group > 0 && tensor.dim() == like->dim() && tensor.sizes[static_cast<std::size_t>(joined)] % group == 0;
    const std::int64_t own = fits ? tensor.sizes[static_cast<std::size_t>(joined)] / group : 0;
    if (own == 0) return;
    row.inputs.push_back(with_groups(call, axis, shard, group, own));
    groups += own;
  }
  row.outputs.push_back(with_groups(call, axis, shard, group, groups));
  rows.push_back(std::move(row));
}

void cat_rows(const OpCall& call, int axis, Rows& rows) {
  joined_rows(call, axis, rows, /*stacks=*/false);
  for (const Placement& shard : sharded_placements(call, axis)) joined_groups_row(call, axis, shard, rows);
}

std::vector<Sizes> cat_sizes(const OpCall& call) {
  Sizes sizes;
  for (const TensorArg& tensor : call.tensors) {
    const bool is_empty_vector = tensor.dim() == 1 && tensor.sizes[0] == 0;
    if (is_empty_vector) continue;
    const auto joined = static_cast<std::size_t>(dim_argument(call, tensor.dim()));
    const std::int64_t before = sizes.empty() ? 0 : sizes[joined];
    sizes.assign(tensor.sizes.begin(), tensor.sizes.end());
    sizes[joined] += before;
  }
  return {sizes};
}

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

}  // namespace

void add_view_rules(RuleTable& table) {
  table["aten::transpose"] = {.rows = mapped_rows<transpose_map>, .cuts = Cuts::kSeen};
  table["aten::t"] = {.rows = mapped_rows<t_map>, .cuts = Cuts::kSeen};
  table["aten::permute"] = {.rows = mapped_rows<permute_map>, .cuts = Cuts::kSeen};
  table["aten::unsqueeze"] = {.rows = mapped_rows<unsqueeze_map>, .cuts = Cuts::kSeen};
  table["aten::squeeze"] = {.rows = mapped_rows<squeeze_map>, .localise = localise_squeeze, .cuts = Cuts::kSeen};
  table["aten::expand"] = {
      .rows = mapped_rows<expand_map>, .localise = localise_sizes<expand_sizes>, .output_sizes = expand_sizes, .cuts = Cuts::kSeen};
  for (const char* name : {"aten::view", "aten::_unsafe_view", "aten::reshape", "aten::_reshape_copy"}) {
    table[name] = {
        .rows = view_rows, .localise = localise_view, .output_sizes = view_sizes, .cuts = Cuts::kSeen};
  }
  table["aten::_reshape_alias"] = {
      .rows = view_rows, .localise = localise_alias, .output_sizes = view_sizes, .cuts = Cuts::kSeen};
  for (const char* name : {"aten::select", "aten::unbind"}) table[name] = {.rows = mapped_rows<removed_dim_map>, .cuts = Cuts::kSeen};
  table["aten::unfold"] = {.rows = mapped_rows<unfold_map>, .cuts = Cuts::kSeen};
  table["aten::diagonal"] = {.rows = mapped_rows<diagonal_map>, .cuts = Cuts::kSeen};
  table["aten::view_as_real"] = {.rows = mapped_rows<as_pairs_map>, .cuts = Cuts::kSeen};
  table["aten::view_as_complex"] = {.rows = mapped_rows<from_pairs_map>, .cuts = Cuts::kSeen};
  for (const char* name : {"aten::split", "aten::split_with_sizes", "aten::unsafe_split",
                           "aten::unsafe_split_with_sizes"}) {
    table[name] = {.rows = split_rows, .localise = localise_split, .output_sizes = split_sizes, .cuts = Cuts::kSeen};
  }
  table["aten::slice"] = {
      .rows = slice_rows, .localise = localise_slice, .output_sizes = slice_sizes, .cuts = Cuts::kSeen};
  table["aten::narrow_copy"] = {.rows = mapped_rows<taken_dim_map>, .cuts = Cuts::kSeen};
  table["aten::slice_backward"] = {.rows = slice_backward_rows,
                                   .localise = localise_slice_backward,
                                   .output_sizes = input_sizes_argument, .cuts = Cuts::kSeen};
  table["aten::select_backward"] = {.rows = mapped_rows<select_backward_map>,
                                    .localise = localise_sizes<input_sizes_argument>,
                                    .output_sizes = input_sizes_argument, .cuts = Cuts::kSeen};
  table["aten::cat"] = {.rows = cat_rows, .output_sizes = cat_sizes, .cuts = Cuts::kSeen};
  table["aten::stack"] = {.rows = stack_rows, .cuts = Cuts::kSeen};
}

}  // namespace tessera::rules
