// SPDX-License-Identifier: Apache-2.0
// Which output dim of a view a sharded input dim becomes.
#pragma once

#include <optional>

#include "tensor/layout.h"

namespace tessera::rules {

/// Resolves a -1 in the sizes asked of a view of `numel` elements.
[[nodiscard]] tensor::Sizes infer_view_sizes(at::IntArrayRef asked, std::int64_t numel);

/// Input dims and output dims of a view fall into groups of equal product. How a shard lies after it, if nothing else cuts its
/// group: in the flattened group every cut is one in groups and units; dims in front of the sharded one repeat it, dims behind it make its units
/// longer. The output dim is the innermost that can be cut at the same places. Nothing: the shard cannot stay.
[[nodiscard]] std::optional<Placement> map_view_shard(at::IntArrayRef input, at::IntArrayRef output, const Placement& shard,
                                                      int ranks);

/// True if `a` and `b` are dims of one group.
[[nodiscard]] bool same_view_group(at::IntArrayRef input, at::IntArrayRef output, std::int64_t a, std::int64_t b);

/// The output dim that `dim` is, as a whole and alone; -1 if it is taken apart or merged.
[[nodiscard]] std::int64_t passed_through(at::IntArrayRef input, at::IntArrayRef output, std::int64_t dim);

}  // namespace tessera::rules
