// SPDX-License-Identifier: Apache-2.0
// Keeping and restoring what a step writes.
#include "tensor/journal.h"

#include <ATen/core/LegacyTypeDispatch.h>

#include "tensor/view_copy.h"

namespace tessera::tensor {

void Journal::keep(const at::Tensor& tensor) {
  MeshStorage& storage = storage_of(tensor);
  if (!kept_.insert(&storage).second) return;
  // What is written into such a view is written into its base.
  if (storage.copy != nullptr) keep(storage.copy->base);
  const at::Tensor local = storage.local();
  entries_.push_back({tensor, local, local.is_meta() ? at::Tensor() : local.clone(), storage.placements(), storage.stage});
}

/// Backwards, since a view may have been written before its base and after it.
void Journal::restore() {
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  for (auto entry = entries_.rbegin(); entry != entries_.rend(); ++entry) {
    MeshStorage& storage = storage_of(entry->tensor);
    storage.take_back(entry->local, entry->placements);
    storage.stage = entry->stage;
    if (entry->values.defined()) entry->local.copy_(entry->values);
  }
  entries_.clear();
  kept_.clear();
}

}  // namespace tessera::tensor
