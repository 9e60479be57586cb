// SPDX-License-Identifier: Apache-2.0
// Fourier transforms: linear, and dims that are not transformed may be sharded.
#include "rules/families.h"
#include "rules/rows.h"

namespace tessera::rules {
namespace {

// _fft_r2c, _fft_c2c, _fft_c2r(self, dim, normalization, ...)
void transform_rows(const OpCall& call, int axis, Rows& rows) {
  if (call.tensor(0).placements[axis] == P) add_row(call, rows, {P}, {P});
  const auto listed = call.named("dim").toDimVector();
  const std::int64_t dim = sharded_dim(call, 0, axis);
  const bool transformed = std::any_of(
      listed.begin(), listed.end(), [&](std::int64_t other) { return wrap_dim(other, call.tensor(0).dim()) == dim; });
  const bool possible = dim >= 0 && !transformed && leaves_no_rank_empty(call, call.tensor(0), dim, axis);
  if (possible) add_row(call, rows, {S(dim)}, {S(dim)});
}

}  // namespace

void add_fourier_rules(RuleTable& table) {
  for (const char* name : {"aten::_fft_r2c", "aten::_fft_c2c", "aten::_fft_c2r"})
    table[name] = {.rows = transform_rows};
}

}  // namespace tessera::rules
