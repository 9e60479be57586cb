// SPDX-License-Identifier: Apache-2.0
// Matrix products: rows of the left, columns of the right, or the summed dim may be sharded.
#include <array>

#include "rules/families.h"
#include "rules/rows.h"

namespace tessera::rules {
namespace {

/// Rows of a product [.., m, k] x [.., k, n], in the order of the papers: data parallel, column parallel, row parallel
/// (Shoeybi et al. 2019, arXiv:1909.08053, section 3), then linearity in each operand.
struct ProductRow {
  Placement left, right, out;
};

/// `first_matrix_dim` is 0 for mm, 1 for bmm, whose dim 0 is a batch.
c10::SmallVector<ProductRow, 8> product_rows(std::int64_t first_matrix_dim) {
  const std::int64_t row = first_matrix_dim;
  const std::int64_t column = first_matrix_dim + 1;
  c10::SmallVector<ProductRow, 8> rows{
      {S(row), R, S(row)}, {R, S(column), S(column)}, {S(column), S(row), P}, {P, R, P}, {R, P, P}};
  if (first_matrix_dim == 1) rows.insert(rows.begin(), {S(0), S(0), S(0)});
  return rows;
}

/// A row is worth offering only if it follows how some operand lies: otherwise it would cut for no reason.
bool in_play(const OpCall& call, int axis, int left, const ProductRow& row) {
  const Placement a = call.tensor(left).placements[axis];
  const Placement b = call.tensor(left + 1).placements[axis];
  return (!row.left.is_replicate() && a == row.left) || (!row.right.is_replicate() && b == row.right);
}

template <std::int64_t FirstMatrixDim>
void plain_rows(const OpCall& call, int axis, Rows& rows) {
  for (const ProductRow& row : product_rows(FirstMatrixDim)) {
    if (in_play(call, axis, 0, row)) add_row(call, rows, {row.left, row.right}, {row.out});
  }
}

/// How the added term must lie for an output that lies as `out`; it broadcasts from the right.
Placement added_placement(const OpCall& call, Placement out, std::int64_t out_dims) {
  if (!out.is_shard()) return out;
  const TensorArg& added = call.tensor(0);
  const std::int64_t dim = out.dim - (out_dims - added.dim());
  return dim >= 0 && added.sizes[static_cast<std::size_t>(dim)] != 1 ? S(dim) : R;
}

/// addmm, baddbmm: the bias of a partial product is counted once, by the rank that keeps it.
template <std::int64_t FirstMatrixDim>
void added_rows(const OpCall& call, int axis, Rows& rows) {
  for (const ProductRow& row : product_rows(FirstMatrixDim)) {
    if (!in_play(call, axis, 1, row)) continue;
    add_row(call, rows, {added_placement(call, row.out, FirstMatrixDim + 2), row.left, row.right}, {row.out});
  }
}

/// [m, k] x [k] and [k] x [k].
void mv_rows(const OpCall& call, int axis, Rows& rows) {
  const Placement a = call.tensor(0).placements[axis];
  const Placement b = call.tensor(1).placements[axis];
  if (a == S(0)) add_row(call, rows, {S(0), R}, {S(0)});
  if (a == S(1) || b == S(0)) add_row(call, rows, {S(1), S(0)}, {P});
}

void dot_rows(const OpCall& call, int axis, Rows& rows) {
  if (!sharded_dims(call, axis).empty()) add_row(call, rows, {S(0), S(0)}, {P});
}

// addmv(self, mat [m, k], vec [k])
void added_mv_rows(const OpCall& call, int axis, Rows& rows) {
  const Placement a = call.tensor(1).placements[axis];
  if (a == S(0)) add_row(call, rows, {added_placement(call, S(0), 1), S(0), R}, {S(0)});
  if (a == S(1) || call.tensor(2).placements[axis] == S(0)) add_row(call, rows, {P, S(1), S(0)}, {P});
}

// addr(self, vec1 [m], vec2 [n])
void added_outer_rows(const OpCall& call, int axis, Rows& rows) {
  if (sharded_dim(call, 1, axis) == 0) add_row(call, rows, {added_placement(call, S(0), 2), S(0), R}, {S(0)});
  if (sharded_dim(call, 2, axis) == 0) add_row(call, rows, {added_placement(call, S(1), 2), R, S(0)}, {S(1)});
}

// addbmm(self, batch1 [b, m, k], batch2 [b, k, n]): the batch is summed too.
void added_batch_sum_rows(const OpCall& call, int axis, Rows& rows) {
  for (const ProductRow& row : {ProductRow{S(0), S(0), P}, ProductRow{S(1), R, S(0)}, ProductRow{R, S(2), S(1)},
                                ProductRow{S(2), S(1), P}}) {
    if (in_play(call, axis, 1, row)) {
      add_row(call, rows, {added_placement(call, row.out, 2), row.left, row.right}, {row.out});
    }
  }
}

/// The fused activation is not linear: no partial output.
void activated_rows(const OpCall& call, int axis, Rows& rows) {
  for (const ProductRow& row : product_rows(0)) {
    if (row.out.is_partial() || !in_play(call, axis, 1, row)) continue;
    add_row(call, rows, {added_placement(call, row.out, 2), row.left, row.right}, {row.out});
  }
}

// _trilinear(i1, i2, i3, expand1, expand2, expand3, sumdim, ..): the tensors are given further dims of size 1 until all
// have the same, are multiplied, and `sumdim` is summed over.
struct Trilinear {
  std::array<c10::DimVector, 3> expanded;
  c10::DimVector summed;

  explicit Trilinear(const OpCall& call)
      : expanded{call.named("expand1").toDimVector(), call.named("expand2").toDimVector(),
                 call.named("expand3").toDimVector()},
        summed(call.named("sumdim").toDimVector()) {}

  [[nodiscard]] static std::int64_t before(const c10::DimVector& dims, std::int64_t dim) {
    return std::count_if(dims.begin(), dims.end(), [&](std::int64_t other) { return other < dim; });
  }
  /// Where tensor `index` has common dim `dim`; -1 if it has not, or only in size 1.
  [[nodiscard]] std::int64_t own_dim(const OpCall& call, std::size_t index, std::int64_t dim) const {
    if (contains(expanded[index], dim)) return -1;
    const std::int64_t own = dim - before(expanded[index], dim);
    return call.tensors[index].sizes[static_cast<std::size_t>(own)] == 1 ? -1 : own;
  }
};

void trilinear_rows(const OpCall& call, int axis, Rows& rows) {
  const Trilinear product(call);
  const auto dims = call.tensor(0).dim() + static_cast<std::int64_t>(product.expanded[0].size());
  for (std::int64_t dim = 0; dim < dims; ++dim) {
    Row row;
    bool follows = false;
    for (std::size_t i = 0; i < 3; ++i) {
      const std::int64_t own = product.own_dim(call, i, dim);
      row.inputs.push_back(own < 0 ? R : S(own));
      follows = follows || (own >= 0 && call.tensors[i].placements[axis] == S(own));
    }
    row.outputs.push_back(contains(product.summed, dim) ? P : S(dim - Trilinear::before(product.summed, dim)));
    if (follows) rows.push_back(std::move(row));
  }
  for (std::size_t i = 0; i < 3; ++i) {
    Row row{{R, R, R}, {P}};
    row.inputs[i] = P;
    if (call.tensors[i].placements[axis] == P) rows.push_back(std::move(row));
  }
}

}  // namespace

void add_matmul_rules(RuleTable& table) {
  table["aten::mm"] = {.rows = plain_rows<0>, .cuts = Cuts::kAny};
  table["aten::bmm"] = {.rows = plain_rows<1>, .cuts = Cuts::kAny};
  table["aten::addmm"] = {.rows = added_rows<0>, .cuts = Cuts::kAny};
  table["aten::baddbmm"] = {.rows = added_rows<1>, .cuts = Cuts::kAny};
  table["aten::_addmm_activation"] = {.rows = activated_rows, .cuts = Cuts::kAny};
  table["aten::mv"] = {.rows = mv_rows, .cuts = Cuts::kAny};
  table["aten::dot"] = {.rows = dot_rows, .cuts = Cuts::kAny};
  table["aten::vdot"] = {.rows = dot_rows, .cuts = Cuts::kAny};
  table["aten::addmv"] = {.rows = added_mv_rows, .cuts = Cuts::kAny};
  table["aten::addr"] = {.rows = added_outer_rows, .cuts = Cuts::kAny};
  table["aten::addbmm"] = {.rows = added_batch_sum_rows, .cuts = Cuts::kAny};
  table["aten::_trilinear"] = {.rows = trilinear_rows, .cuts = Cuts::kAny};
}

}  // namespace tessera::rules
