// SPDX-License-Identifier: Apache-2.0
// Messages between ranks that are threads, on their way on the device.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/cuda/CUDAEvent.h>

#include <cstdint>
#include <map>
#include <mutex>

namespace tessera::cuda {

/// A copy of what was sent, and the point of the sender's stream from which on it may be read.
struct Parcel {
  at::Tensor tensor;
  at::cuda::CUDAEvent written;
};

/// Parcels of one group by number; the numbers travel over the group's host backend. What nobody fetches goes with the
/// mailbox. Any thread.
class Mailbox {
 public:
  std::int64_t put(Parcel parcel);
  /// Each number once.
  Parcel take(std::int64_t number);

 private:
  std::mutex mutex_;
  std::int64_t next_ = 0;
  std::map<std::int64_t, Parcel> parcels_;
};

}  // namespace tessera::cuda
