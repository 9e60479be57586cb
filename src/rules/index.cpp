// SPDX-License-Identifier: Apache-2.0
// Looking up and writing by index: what is not indexed may stay sharded, and so may the indices themselves.
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "rules/families.h"
#include "rules/index_range.h"
#include "rules/rows.h"
#include "tessera/base/error.h"

namespace tessera::rules {
namespace {

std::int64_t dim_argument(const OpCall& call) { return wrap_dim(call.named("dim").toInt(), call.tensor(0).dim()); }

bool same_size(const TensorArg& a, const TensorArg& b, std::int64_t dim) {
  return dim < a.dim() && dim < b.dim() &&
         a.sizes[static_cast<std::size_t>(dim)] == b.sizes[static_cast<std::size_t>(dim)];
}

// gather(self, dim, index, ...): an output element lies where its index lies.
void gather_rows(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t dim = dim_argument(call);
  if (call.tensor(0).placements[axis] == P) add_row(call, rows, {P, R}, {P});
  for (const std::int64_t cut : sharded_dims(call, axis)) {
    if (cut == dim && sharded_dim(call, 1, axis) == cut && call.tensor(0).dim() > 0) {
      add_row(call, rows, {R, S(cut)}, {S(cut)});
    }
    if (cut != dim && same_size(call.tensor(0), call.tensor(1), cut)) add_row(call, rows, {S(cut), S(cut)}, {S(cut)});
  }
}

/// Every tensor of the call has `dim` in the size of the first.
bool all_have(const OpCall& call, std::int64_t dim) {
  return std::all_of(call.tensors.begin(), call.tensors.end(), [&](const TensorArg& tensor) {
    return !tensor.defined || same_size(call.tensor(0), tensor, dim);
  });
}

// scatter(self, dim, index, src or value), scatter_reduce
void scatter_rows(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t dim = dim_argument(call);
  for (const std::int64_t cut : sharded_dims(call, axis)) {
    if (cut != dim && all_have(call, cut)) add_uniform_row(call, rows, S(cut), S(cut));
  }
}

// scatter_add(self, dim, index, src): a sum, so its terms may be spread over the ranks.
void scatter_add_rows(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t dim = dim_argument(call);
  if (call.tensor(2).placements[axis] == P) add_row(call, rows, {P, R, P}, {P});
  scatter_rows(call, axis, rows);
  if (sharded_dim(call, 1, axis) == dim && same_size(call.tensor(1), call.tensor(2), dim) && call.tensor(0).dim() > 0) {
    add_row(call, rows, {P, S(dim), S(dim)}, {P});
  }
}

// index_select(self, dim, index)
void index_select_rows(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t dim = dim_argument(call);
  if (call.tensor(0).placements[axis] == P) add_row(call, rows, {P, R}, {P});
  const std::int64_t cut = sharded_dim(call, 0, axis);
  if (cut >= 0 && cut != dim) add_row(call, rows, {S(cut), R}, {S(cut)});
  if (sharded_dim(call, 1, axis) == 0 && call.tensor(0).dim() > 0) add_row(call, rows, {R, S(0)}, {S(dim)});
}

// index_copy, index_reduce(self, dim, index, source, ...), index_fill(self, dim, index, value)
void index_write_rows(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t dim = dim_argument(call);
  const bool has_source = call.index_of("source") >= 0;
  for (const std::int64_t cut : sharded_dims(call, axis)) {
    if (cut == dim || cut >= call.tensor(0).dim()) continue;
    if (has_source && !same_size(call.tensor(0), call.tensor(2), cut)) continue;
    if (has_source) {
      add_row(call, rows, {S(cut), R, S(cut)}, {S(cut)});
    } else if (sharded_dim(call, 0, axis) == cut) {
      add_row(call, rows, {S(cut), R}, {S(cut)});
    }
  }
}

// index_add(self, dim, index, source, alpha)
void index_add_rows(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t dim = dim_argument(call);
  if (call.tensor(2).placements[axis] == P) add_row(call, rows, {P, R, P}, {P});
  index_write_rows(call, axis, rows);
  const bool follows = sharded_dim(call, 1, axis) == 0 || sharded_dim(call, 2, axis) == dim;
  if (follows && call.tensor(2).dim() > 0 && call.tensor(1).dim() == 1) add_row(call, rows, {P, S(0), S(dim)}, {P});
}

/// What an index list does to the dims of self, as NumPy has it.
struct IndexMap {
  std::vector<bool> indexed;    ///< per dim of self
  std::int64_t first = -1;      ///< the first indexed dim
  std::int64_t index_dims = 0;  ///< of the indices, broadcast
  bool adjacent = true;         ///< the indexed dims follow each other: the result keeps their position
  bool has_mask = false;

  [[nodiscard]] std::int64_t position() const { return adjacent ? first : 0; }
  /// Where a dim that is not indexed goes.
  [[nodiscard]] std::int64_t output_of(std::int64_t dim) const {
    const std::int64_t kept_before = std::count(indexed.begin(), indexed.begin() + dim, false);
    return dim < position() ? dim : kept_before + index_dims;
  }
};

bool is_mask(const TensorArg& tensor) { return tensor.dtype == at::kBool || tensor.dtype == at::kByte; }

/// `indices` are the tensors 1 .. `count` of the call.
IndexMap map_indices(const OpCall& call, int count) {
  IndexMap map;
  map.indexed.assign(static_cast<std::size_t>(call.tensor(0).dim()), false);
  std::int64_t dim = 0;
  std::int64_t last = -1;
  for (int i = 1; i <= count; ++i) {
    const TensorArg& index = call.tensor(i);
    const std::int64_t covers = index.defined && is_mask(index) ? index.dim() : 1;
    if (index.defined) {
      map.has_mask = map.has_mask || is_mask(index);
      map.index_dims = std::max(map.index_dims, is_mask(index) ? 1 : index.dim());
      for (std::int64_t covered = dim; covered < std::min(dim + covers, call.tensor(0).dim()); ++covered) {
        if (map.first < 0) map.first = covered;
        if (last >= 0 && covered != last + 1) map.adjacent = false;
        map.indexed[static_cast<std::size_t>(covered)] = true;
        last = covered;
      }
      // A mask without dims takes none from self, but stands between the others.
      if (covers == 0) map.adjacent = false;
    }
    dim += covers;
  }
  return map;
}

int count_indices(const OpCall& call) {
  const int argument = call.index_of("indices");
  return static_cast<int>(std::count_if(call.tensors.begin(), call.tensors.end(),
                                        [&](const TensorArg& tensor) { return tensor.argument == argument; }));
}

/// Placements of the indices when dim `dim` of their broadcast shape is cut; nothing if all have size 1 there.
std::optional<c10::SmallVector<Placement, 8>> cut_indices(const OpCall& call, const IndexMap& map, int count,
                                                          std::int64_t dim) {
  c10::SmallVector<Placement, 8> inputs{R};
  bool any = false;
  for (int i = 1; i <= count; ++i) {
    const TensorArg& index = call.tensor(i);
    const std::int64_t own = dim - (map.index_dims - index.dim());
    const bool follows = index.defined && own >= 0 && index.sizes[static_cast<std::size_t>(own)] != 1;
    inputs.push_back(follows ? S(own) : R);
    any = any || follows;
  }
  return any ? std::optional(inputs) : std::nullopt;
}

// index(self, indices)
void index_rows(const OpCall& call, int axis, Rows& rows) {
  const int count = count_indices(call);
  const IndexMap map = map_indices(call, count);
  if (map.first < 0) return;
  if (call.tensor(0).placements[axis] == P) add_row(call, rows, {P}, {P});
  const std::int64_t cut = sharded_dim(call, 0, axis);
  if (cut >= 0 && !map.indexed[static_cast<std::size_t>(cut)]) add_row(call, rows, {S(cut)}, {S(map.output_of(cut))});
  if (map.has_mask) return;
  for (int i = 1; i <= count; ++i) {
    const std::int64_t own = sharded_dim(call, i, axis);
    if (own < 0) continue;
    const std::int64_t dim = own + map.index_dims - call.tensor(i).dim();
    if (const auto inputs = cut_indices(call, map, count, dim)) {
      rows.push_back({*inputs, {S(map.position() + dim)}});
    }
  }
}

// index_put(self, indices, values, accumulate): values broadcast to what index(self, indices) would give.
void index_put_rows(const OpCall& call, int axis, Rows& rows) {
  const int count = count_indices(call);
  const IndexMap map = map_indices(call, count);
  const TensorArg& values = call.tensor(count + 1);
  if (map.first < 0) return;
  const std::int64_t kept = std::count(map.indexed.begin(), map.indexed.end(), false);
  for (std::int64_t cut = 0; cut < call.tensor(0).dim(); ++cut) {
    if (map.indexed[static_cast<std::size_t>(cut)]) continue;
    const std::int64_t own = map.output_of(cut) - (kept + map.index_dims - values.dim());
    const bool follows = own >= 0 && values.sizes[static_cast<std::size_t>(own)] != 1;
    if (sharded_dim(call, 0, axis) != cut && !(follows && sharded_dim(call, count + 1, axis) == own)) continue;
    Row row;
    row.inputs.resize(call.tensors.size());
    row.inputs.front() = S(cut);
    row.inputs.back() = follows ? S(own) : R;
    row.outputs.resize(static_cast<std::size_t>(call.num_outputs()), S(cut));
    rows.push_back(std::move(row));
  }
}

// take(self, index)
void take_rows(const OpCall& call, int axis, Rows& rows) {
  if (call.tensor(0).placements[axis] == P) add_row(call, rows, {P, R}, {P});
  const std::int64_t cut = sharded_dim(call, 1, axis);
  if (cut >= 0) add_row(call, rows, {R, S(cut)}, {S(cut)});
}

// put(self, index, source, accumulate): a sum may be spread over the ranks; which of several writes lasts may not.
void put_rows(const OpCall& call, int axis, Rows& rows) {
  if (!call.named("accumulate").toBool() || call.tensor(1).sizes != call.tensor(2).sizes) return;
  if (call.tensor(2).placements[axis] == P) add_row(call, rows, {P, R, P}, {P});
  for (const int tensor : {1, 2}) {
    const std::int64_t cut = sharded_dim(call, tensor, axis);
    if (cut >= 0) add_row(call, rows, {P, S(cut), S(cut)}, {P});
  }
}

// masked_scatter(self, mask, source): the k-th element that is masked takes the k-th of the source.
void masked_scatter_rows(const OpCall& call, int axis, Rows& rows) {
  if (call.tensor(0).sizes != call.tensor(1).sizes || call.tensor(0).dim() == 0) return;
  if (contains(c10::SmallVector<std::int64_t, 2>{sharded_dim(call, 0, axis), sharded_dim(call, 1, axis)}, 0)) {
    add_row(call, rows, {S(0), S(0), R}, {S(0)});
  }
}

// masked_scatter_backward(grad_output, mask, sizes): the gradient of the source, to which every rank adds its part.
void masked_scatter_backward_rows(const OpCall& call, int axis, Rows& rows) {
  if (call.tensor(0).sizes != call.tensor(1).sizes || call.tensor(0).dim() == 0) return;
  if (contains(sharded_dims(call, axis), 0)) add_row(call, rows, {S(0), S(0)}, {P});
}

/// How many elements are masked in front of this rank's rows, and in all rows. decision.notes: the number of all rows,
/// the first of this rank, and the axes over which they are cut.
struct MaskedBefore {
  std::int64_t here;
  std::int64_t total;

  MaskedBefore(const at::Tensor& mask, const Decision& decision, const Mesh& mesh) {
    const std::int64_t first = decision.notes[1];
    at::Tensor counts = at::zeros({decision.notes[0]}, mask.options().dtype(at::kLong));
    if (mask.numel() > 0) counts.narrow(0, first, mask.size(0)).copy_(mask.reshape({mask.size(0), -1}).sum(1));
    mesh.across(static_cast<unsigned>(decision.notes[2])).all_reduce(counts);
    here = counts.narrow(0, 0, first).sum().item<std::int64_t>();
    total = counts.sum().item<std::int64_t>();
  }
};

void compute_masked_scatter(const c10::OperatorHandle& op, const Decision& decision, const Mesh& mesh,
                            torch::jit::Stack& stack) {
  const MaskedBefore masked(stack[stack.size() - 2].toTensor(), decision, mesh);
  const at::Tensor source = stack.back().toTensor().flatten();
  check<ShapeError>(masked.total <= source.numel(),
                    "masked_scatter: {} elements are masked, but the source has {}; give it one for each", masked.total,
                    source.numel());
  stack.back() = source.slice(0, masked.here);
  op.callBoxed(stack);
}

void compute_masked_scatter_backward(const c10::OperatorHandle& op, const Decision& decision, const Mesh& mesh,
                                     torch::jit::Stack& stack) {
  const auto arguments = pop_arguments(op, stack);
  const at::Tensor gradient = arguments[0].toTensor();
  const at::Tensor mask = arguments[1].toTensor();
  const MaskedBefore masked(mask, decision, mesh);
  const at::Tensor own = gradient.masked_select(mask);
  const at::Tensor result = at::zeros(arguments[2].toIntVector(), gradient.options());
  result.view(-1).narrow(0, masked.here, own.numel()).copy_(own);
  stack.emplace_back(result);
}

template <tensor::Compute Work>
void localise_masked(const OpCall& call, Decision& decision) {
  const unsigned axes = axes_cutting(decision.inputs[0], 0);
  if (axes == 0) return;
  const std::int64_t size = call.tensor(0).sizes[0];
  decision.notes = {size, tensor::local_extent(size, 0, decision.inputs[0], call.mesh).offset, axes};
  decision.compute = Work;
}

// select_scatter(self, src, dim, index), slice_scatter(self, src, dim, start, end, step)
template <bool Selects>
void write_slice_rows(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t dim = dim_argument(call);
  if (call.tensor(0).placements[axis] == P && call.tensor(1).placements[axis] == P) add_row(call, rows, {P, P}, {P});
  for (std::int64_t cut = 0; cut < call.tensor(0).dim(); ++cut) {
    const std::int64_t source = Selects && cut > dim ? cut - 1 : cut;
    if (cut == dim || (sharded_dim(call, 0, axis) != cut && sharded_dim(call, 1, axis) != source)) continue;
    add_row(call, rows, {S(cut), S(source)}, {S(cut)});
  }
}

// bucketize(self, boundaries), searchsorted(sorted_sequence, self, ..., sorter), isin(elements, test_elements)
void bucketize_rows(const OpCall& call, int axis, Rows& rows) {
  // Of a number among tensors the result is one number.
  const std::int64_t cut = call.tensor(0).argument == 0 ? sharded_dim(call, 0, axis) : -1;
  if (cut >= 0) add_row(call, rows, {S(cut)}, {S(cut)});
}

void searchsorted_rows(const OpCall& call, int axis, Rows& rows) {
  if (call.tensor(1).argument != 1) return;
  for (const std::int64_t cut : sharded_dims(call, axis)) {
    if (call.tensor(0).dim() == 1 && sharded_dim(call, 1, axis) == cut) add_row(call, rows, {R, S(cut)}, {S(cut)});
    const bool batch = cut < call.tensor(0).dim() - 1;
    if (call.tensor(0).dim() > 1 && batch) add_uniform_row(call, rows, S(cut), S(cut));
  }
}

}  // namespace

void add_index_rules(RuleTable& table) {
  table["aten::gather"] = {.rows = gather_rows, .cuts = Cuts::kAny};
  for (const char* name : {"aten::scatter", "aten::scatter_reduce"}) table[name] = {.rows = scatter_rows, .cuts = Cuts::kAny};
  table["aten::scatter_add"] = {.rows = scatter_add_rows, .cuts = Cuts::kAny};
  table["aten::index_select"] = {.rows = index_select_rows, .cuts = Cuts::kAny};
  for (const char* name : {"aten::index_copy", "aten::index_reduce", "aten::index_fill"}) {
    table[name] = {.rows = index_write_rows, .cuts = Cuts::kAny};
  }
  table["aten::index_add"] = {.rows = index_add_rows, .cuts = Cuts::kAny};
  for (const char* name : {"aten::index", "aten::_unsafe_index"}) table[name] = {.rows = index_rows, .cuts = Cuts::kAny};
  for (const char* name : {"aten::index_put", "aten::_index_put_impl", "aten::_unsafe_index_put"}) {
    table[name] = {.rows = index_put_rows, .cuts = Cuts::kAny};
  }
  table["aten::take"] = {.rows = take_rows, .cuts = Cuts::kAny};
  table["aten::put"] = {.rows = put_rows, .cuts = Cuts::kAny};
  table["aten::masked_scatter"] = {.rows = masked_scatter_rows, .localise = localise_masked<compute_masked_scatter>};
  table["aten::masked_scatter_backward"] = {.rows = masked_scatter_backward_rows,
                                            .localise = localise_masked<compute_masked_scatter_backward>};
  table["aten::select_scatter"] = {.rows = write_slice_rows<true>, .cuts = Cuts::kAny};
  table["aten::slice_scatter"] = {.rows = write_slice_rows<false>, .cuts = Cuts::kAny};
  table["aten::bucketize"] = {.rows = bucketize_rows, .cuts = Cuts::kAny};
  table["aten::isin"] = {.rows = bucketize_rows, .cuts = Cuts::kAny};
  table["aten::searchsorted"] = {.rows = searchsorted_rows, .cuts = Cuts::kAny};
}

}  // namespace tessera::rules
