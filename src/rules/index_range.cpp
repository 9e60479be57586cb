// SPDX-License-Identifier: Apache-2.0
// Look-ups into a part of a table.
#include "rules/index_range.h"

#include <ATen/ops/_assert_async.h>

#include "tessera/base/error.h"

namespace tessera::rules {

IndexRange IndexRange::of(const OpCall& call, const Decision& decision, int index, int dim) {
  const std::int64_t total = call.tensor(index).sizes[static_cast<std::size_t>(dim)];
  const Extent extent =
      tensor::local_extent(total, dim, decision.inputs[static_cast<std::size_t>(index)], call.mesh);
  return {extent.offset, extent.length, total};
}

at::Tensor IndexRange::covers(const at::Tensor& indices) const {
  return indices.ge(begin).logical_and_(indices.lt(begin + length));
}

void IndexRange::check_bounds(const at::Tensor& indices, const at::Tensor& counts, const char* operation) const {
  const at::Tensor within = indices.ge(0).logical_and_(indices.lt(total)).logical_or_(counts.logical_not()).all();
  const auto text = [&] { return fmt::format("{}: an index is outside the table; allowed: 0 to {}", operation, total - 1); };
  if (within.is_cpu()) {
    if (!within.item<bool>()) throw ShapeError(text());
  } else {
    at::_assert_async(within, text());
  }
}

unsigned axes_cutting(const Placements& placements, std::int64_t dim) {
  unsigned axes = 0;
  for (int axis = 0; axis < placements.size(); ++axis) {
    if (placements[axis].is_shard(dim)) axes |= 1U << static_cast<unsigned>(axis);
  }
  return axes;
}

}  // namespace tessera::rules
