// SPDX-License-Identifier: Apache-2.0
// Consecutive rows of a table, classes or words, that one rank holds, and look-ups into them by global index.
#pragma once

#include <ATen/core/Tensor.h>

#include "rules/rows.h"

namespace tessera::rules {

struct IndexRange {
  std::int64_t begin = 0;
  std::int64_t length = 0;
  std::int64_t total = 0;

  /// What this rank holds of `dim` of tensor `index`, as `decision` lays it out.
  [[nodiscard]] static IndexRange of(const OpCall& call, const Decision& decision, int index, int dim);
  /// True where `indices` fall into the range.
  [[nodiscard]] at::Tensor covers(const at::Tensor& indices) const;
  /// Throws ShapeError naming `operation` if an index that `counts` is outside the table; on a GPU, where the host would
  /// have to wait for the answer, the device stops instead.
  void check_bounds(const at::Tensor& indices, const at::Tensor& counts, const char* operation) const;
};

/// The axes along which `placements` cut `dim`, as a bit mask; 0: none.
[[nodiscard]] unsigned axes_cutting(const Placements& placements, std::int64_t dim);

}  // namespace tessera::rules
