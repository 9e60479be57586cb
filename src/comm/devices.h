// SPDX-License-Identifier: Apache-2.0
// Which accelerator a rank uses, and what its thread must say before it does; for the CPU nothing.
#pragma once

#include <c10/core/Device.h>

namespace tessera::comm::detail {

/// The device of one rank of a machine. A device without an index becomes that of `local_rank`; with `shared`, ranks
/// beyond the last device start again at the first. The CPU, and a device with an index, stay as they are.
/// Throws  ConfigError when ranks do not share and there is no device for this one
[[nodiscard]] c10::Device device_of_rank(c10::Device device, int local_rank, bool shared);

/// Makes `device` current on the calling thread and lets backward run on it: hooks that meet other ranks would block
/// the worker thread that autograd keeps per device.
void use_device(c10::Device device);

/// Work queued on `device` by any thread so far is over when this returns. For the borders of a job only.
void finish_device(c10::Device device);

/// The calling thread plays one of several ranks of this process: besides use_device, it queues its work on a stream of
/// its own until the end of the scope, where that work is over.
class RankThread {
 public:
  explicit RankThread(c10::Device device);
  ~RankThread();
  RankThread(const RankThread&) = delete;
  RankThread& operator=(const RankThread&) = delete;

 private:
  c10::Device device_;
};

}  // namespace tessera::comm::detail
