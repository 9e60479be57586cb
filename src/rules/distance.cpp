// SPDX-License-Identifier: Apache-2.0
// Distances whose coordinates are sharded: every rank measures along its own, and the powers are added up. (cdist,
// whose points may be sharded, stands with the matrices.)
#include "rules/families.h"
#include "rules/reductions.h"
#include "rules/rows.h"

namespace tessera::rules {
namespace {

constexpr int kCoordinates = 1;  ///< dim of points [N, M]

// dist(self, other, p) -> one number
void dist_rows(const OpCall& call, int axis, Rows& rows) {
  if (call.tensor(0).sizes != call.tensor(1).sizes) return;
  for (const std::int64_t dim : sharded_dims(call, axis)) {
    if (leaves_no_rank_empty(call, call.tensor(0), dim, axis)) add_row(call, rows, {S(dim), S(dim)}, {R});
  }
}

// _pdist_forward(self [N, M], p) -> [N (N - 1) / 2]
void pdist_rows(const OpCall& call, int axis, Rows& rows) {
  const bool cut = sharded_dim(call, 0, axis) == kCoordinates;
  if (cut && leaves_no_rank_empty(call, call.tensor(0), kCoordinates, axis))
    add_row(call, rows, {S(kCoordinates)}, {R});
}

// _pdist_backward(grad, self [N, M], p, pdist) -> [N, M]
void pdist_backward_rows(const OpCall& call, int axis, Rows& rows) {
  if (call.tensor(0).placements[axis] == P) add_row(call, rows, {P, R, R}, {P});
  const bool cut = sharded_dim(call, 1, axis) == kCoordinates;
  if (cut && leaves_no_rank_empty(call, call.tensor(1), kCoordinates, axis)) {
    add_row(call, rows, {R, S(kCoordinates), R}, {S(kCoordinates)});
  }
}

void localise_distance(const OpCall& call, Decision& decision) {
  for (int axis = 0; axis < call.mesh.num_axes(); ++axis) {
    if (decision.inputs[0][axis].is_shard()) decision.notes.push_back(axis);
  }
  if (!decision.notes.empty()) decision.compute = compute_norm;
}

}  // namespace

void add_distance_rules(RuleTable& table) {
  table["aten::dist"] = {.rows = dist_rows, .localise = localise_distance};
  table["aten::_pdist_forward"] = {.rows = pdist_rows, .localise = localise_distance};
  table["aten::_pdist_backward"] = {.rows = pdist_backward_rows};
}

}  // namespace tessera::rules
