// SPDX-License-Identifier: Apache-2.0
// Views that have memory of their own: made of gathered data, since no placement says how they lie in the shards of their
// base. Values still go both ways: a write into the view is a write into the shards of its base, and who reads the view
// after somebody else wrote to the base gathers once more.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "tensor/view_of_base.h"

namespace tessera::tensor {

struct ViewCopy {
  at::Tensor base;               ///< the mesh tensor that one device would show a part of; no view copy itself
  std::optional<Strided> shows;  ///< which part; nothing: other numbers than lie there (conjugates)
  Placements gathered;           ///< how the base lay when the view was made of it
  Placements made;               ///< how the view lay then
  std::uint32_t seen = 0;        ///< writes to the base's memory that the view shows
};

class MeshStorage;

/// What was written into `storage`, the copy of a view, goes to the shards of its base.
void write_to_base(MeshStorage& storage);

/// Reads the base once more, into the memory of the view. Throws StaleRead where that cannot be.
void read_base_again(MeshStorage& storage, const at::Tensor& local);

}  // namespace tessera::tensor
