// SPDX-License-Identifier: Apache-2.0
// What a step writes into tensors that were there before it, so that the step can be taken back.
#pragma once

#include <ATen/core/Tensor.h>

#include <unordered_set>
#include <vector>

#include "tensor/mesh_storage.h"

namespace tessera::tensor {

/// Values of mesh tensors as they were when a step first wrote into them, or reduced them inside their storage. A gradient
/// that backward adds to, running statistics, a state: what a step made itself is not kept.
class Journal {
 public:
  /// Called before each write; the first one of a storage counts.
  void keep(const at::Tensor& tensor);
  /// All of them are as they were.
  void restore();

 private:
  struct Entry {
    at::Tensor tensor;
    at::Tensor local;   ///< the shard itself
    at::Tensor values;  ///< what it held; undefined where this rank has no data
    Placements placements;
    MeshStorage::OnStages stage;
  };
  std::vector<Entry> entries_;
  std::unordered_set<const c10::StorageImpl*> kept_;
};

}  // namespace tessera::tensor
