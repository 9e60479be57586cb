// SPDX-License-Identifier: Apache-2.0
// Linear algebra on batches of matrices: each matrix stands alone, so batch dims may be sharded.
#include <array>

#include "rules/families.h"
#include "rules/rows.h"

namespace tessera::rules {
namespace {

/// An output that a flag turns off is an empty tensor without batch dims.
bool has_every_output(const OpCall& call) {
  constexpr std::array kFlags{"compute_uv", "compute_v", "unpack_data", "unpack_pivots", "pivot"};
  for (const char* flag : kFlags) {
    const int index = call.index_of(flag);
    if (index >= 0 && call.argument(index).isBool() && !call.argument(index).toBool()) return false;
  }
  const int mode = call.index_of("mode");
  return mode < 0 || call.argument(mode).toStringRef() != "r";
}

bool batches_agree(const OpCall& call, const std::array<std::int64_t, 3>& core) {
  const std::int64_t batch = call.tensor(0).dim() - core[0];
  for (std::size_t i = 0; i < call.tensors.size(); ++i) {
    const TensorArg& tensor = call.tensors[i];
    if (!tensor.defined) continue;
    const std::int64_t own = core[std::min<std::size_t>(i, 2)];
    if (tensor.dim() - own != batch) return false;
    if (!std::equal(tensor.sizes.begin(), tensor.sizes.begin() + batch, call.tensor(0).sizes.begin())) return false;
  }
  return true;
}

/// Tensors with `First`, `Second`, `Third` dims of their own behind the batch dims.
template <std::int64_t First, std::int64_t Second = 2, std::int64_t Third = 2>
void batch_rows(const OpCall& call, int axis, Rows& rows) {
  if (!has_every_output(call) || !batches_agree(call, {First, Second, Third})) return;
  for (const std::int64_t dim : sharded_dims(call, axis)) {
    if (dim < call.tensor(0).dim() - First && leaves_no_rank_empty(call, call.tensor(0), dim, axis)) {
      add_uniform_row(call, rows, S(dim), S(dim));
    }
  }
}

// linalg_cross(self, other, dim): every vector of three stands alone.
void cross_rows(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t along = wrap_dim(call.named("dim").toInt(), call.tensor(0).dim());
  if (call.tensor(0).sizes != call.tensor(1).sizes) return;
  for (const std::int64_t dim : sharded_dims(call, axis)) {
    if (dim != along) add_uniform_row(call, rows, S(dim), S(dim));
  }
}

// _cdist_forward, _euclidean_dist(x1 [.., P, M], x2 [.., R, M]) -> [.., P, R]
void distance_rows(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t dims = call.tensor(0).dim();
  if (call.tensor(1).dim() != dims) return;
  if (sharded_dim(call, 0, axis) == dims - 2) add_row(call, rows, {S(dims - 2), R}, {S(dims - 2)});
  if (sharded_dim(call, 1, axis) == dims - 2) add_row(call, rows, {R, S(dims - 2)}, {S(dims - 1)});
  batch_rows<2, 2>(call, axis, rows);
}

// _cdist_backward(grad [.., P, R], x1, x2, p, cdist) -> the gradient of x1
void distance_backward_rows(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t dims = call.tensor(1).dim();
  if (call.tensor(0).dim() != dims || call.tensor(2).dim() != dims) return;
  const auto follows = [&](int tensor, std::int64_t dim) { return sharded_dim(call, tensor, axis) == dim; };
  if (follows(0, dims - 2) || follows(1, dims - 2)) {
    add_row(call, rows, {S(dims - 2), S(dims - 2), R, S(dims - 2)}, {S(dims - 2)});
  }
  if (follows(0, dims - 1) || follows(2, dims - 2)) {
    add_row(call, rows, {S(dims - 1), R, S(dims - 2), S(dims - 1)}, {P});
  }
  batch_rows<2, 2>(call, axis, rows);
}

bool lies_row_major(const TensorArg& tensor) {
  std::int64_t stride = 1;
  for (std::size_t dim = tensor.sizes.size(); dim-- > 0;) {
    if (tensor.sizes[dim] != 1 && tensor.strides[dim] != stride) return false;
    stride *= tensor.sizes[dim];
  }
  return true;
}

/// Determinants factor the transpose of what is row-major, and their backward asks the whole whether it was: decision.notes.
void compute_determinant(const c10::OperatorHandle& op, const Decision& decision, const Mesh&, torch::jit::Stack& stack) {
  const at::Tensor matrices = stack.back().toTensor();
  const bool row_major = decision.notes[0] != 0;
  if (row_major) {
    stack.back() = matrices.contiguous();
  } else if (matrices.is_contiguous()) {
    stack.back() = matrices.mT().contiguous().mT();
  }
  op.callBoxed(stack);
}

void localise_determinant(const OpCall& call, Decision& decision) {
  decision.notes = {lies_row_major(call.tensor(0)) ? 1 : 0};
  decision.compute = compute_determinant;
}

}  // namespace

void add_linalg_rules(RuleTable& table) {
  for (const char* name :
       {"aten::linalg_inv_ex", "aten::linalg_cholesky_ex", "aten::cholesky",
        "aten::cholesky_inverse", "aten::_linalg_eigh", "aten::linalg_eig", "aten::_linalg_eigvals", "aten::_linalg_svd",
        "aten::linalg_qr", "aten::linalg_lu", "aten::linalg_lu_factor_ex", "aten::linalg_matrix_exp", "aten::geqrf",
        "aten::linalg_ldl_factor_ex", "aten::_linalg_solve_ex", "aten::linalg_solve_triangular", "aten::triangular_solve",
        "aten::_cholesky_solve_helper", "aten::cholesky_solve", "aten::linalg_pinv"}) {
    table[name] = {.rows = batch_rows<2>};
  }
  for (const char* name : {"aten::_linalg_det", "aten::_linalg_slogdet"}) {
    table[name] = {.rows = batch_rows<2>, .localise = localise_determinant};
  }
  table["aten::linalg_householder_product"] = {.rows = batch_rows<2, 1>};
  table["aten::ormqr"] = {.rows = batch_rows<2, 1>};
  table["aten::lu_unpack"] = {.rows = batch_rows<2, 1>};
  table["aten::linalg_lu_solve"] = {.rows = batch_rows<2, 1>};
  table["aten::linalg_ldl_solve"] = {.rows = batch_rows<2, 1>};
  // Reads whether any matrix failed.
  table["aten::_linalg_check_errors"] = {};
  table["aten::linalg_cross"] = {.rows = cross_rows};
  for (const char* name : {"aten::_cdist_forward", "aten::_euclidean_dist"}) table[name] = {.rows = distance_rows};
  table["aten::_cdist_backward"] = {.rows = distance_backward_rows};
}

}  // namespace tessera::rules
