// SPDX-License-Identifier: Apache-2.0
// Operators that need one whole dim and may have the others sharded: sorting, selecting, scanning.
#include "rules/families.h"
#include "rules/rows.h"

namespace tessera::rules {
namespace {

/// Rows of scans that are linear along the dim.
void linear_scan_rows(const OpCall& call, int axis, Rows& rows) {
  if (call.tensor(0).placements[axis] == P) add_row(call, rows, {P}, {P});
  other_dim_rows(call, axis, rows);
}

/// kthvalue, mode, median and nanmedian with a dim: it disappears unless it is kept.
void selecting_rows(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t dim = sharded_dim(call, 0, axis);
  if (dim < 0 || call.index_of("dim") < 0) return;
  const std::int64_t along = worked_dim(call);
  if (dim == along) return;
  const bool kept = call.named("keepdim").toBool();
  add_uniform_row(call, rows, S(dim), S(!kept && dim > along ? dim - 1 : dim));
}

// renorm(self, p, dim, maxnorm): each slice along dim has a norm of its own.
void renorm_rows(const OpCall& call, int axis, Rows& rows) {
  const std::int64_t dim = sharded_dim(call, 0, axis);
  if (dim >= 0 && dim == worked_dim(call)) add_row(call, rows, {S(dim)}, {S(dim)});
}

}  // namespace

void add_sort_rules(RuleTable& table) {
  for (const char* name : {"aten::sort", "aten::topk", "aten::cumprod", "aten::cummax", "aten::cummin",
                           "aten::logcumsumexp", "aten::_logcumsumexp"}) {
    table[name] = {.rows = other_dim_rows, .cuts = Cuts::kAny};
  }
  table["aten::cumsum"] = {.rows = linear_scan_rows, .cuts = Cuts::kAny};
  for (const char* name : {"aten::kthvalue", "aten::mode", "aten::median", "aten::nanmedian"}) {
    table[name] = {.rows = selecting_rows, .cuts = Cuts::kAny};
  }
  table["aten::renorm"] = {.rows = renorm_rows, .cuts = Cuts::kAny};
}

}  // namespace tessera::rules
