// SPDX-License-Identifier: Apache-2.0
// Parcels under a lock.
#include "cuda/mailbox.h"

#include "tessera/base/error.h"

namespace tessera::cuda {

std::int64_t Mailbox::put(Parcel parcel) {
  const std::lock_guard lock(mutex_);
  parcels_.emplace(next_, std::move(parcel));
  return next_++;
}

Parcel Mailbox::take(std::int64_t number) {
  const std::lock_guard lock(mutex_);
  auto node = parcels_.extract(number);
  check<Error>(!node.empty(), "mailbox: there is no parcel {}", number);
  return std::move(node.mapped());
}

}  // namespace tessera::cuda
