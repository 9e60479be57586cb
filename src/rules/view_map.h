// SPDX-License-Identifier: Apache-2.0
// Which output dim of a view a sharded input dim becomes.
#pragma once

#include "tensor/layout.h"

namespace tessera::rules {

/// Resolves a -1 in the sizes asked of a view of `numel` elements.
[[nodiscard]] tensor::Sizes infer_view_sizes(at::IntArrayRef asked, std::int64_t numel);

/// Input dims and output dims of a view fall into groups of equal product. A shard of `dim` (cut into `shards` parts)
/// stays if `dim` is the outermost of its group: it becomes the outermost output dim of the group, provided that both
/// are cut evenly there; a dim that merely passes through may be cut unevenly. -1: the shard cannot stay.
[[nodiscard]] std::int64_t map_view_dim(at::IntArrayRef input, at::IntArrayRef output, std::int64_t dim,
                                        std::int64_t shards);

}  // namespace tessera::rules
