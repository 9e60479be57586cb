// SPDX-License-Identifier: Apache-2.0
// Devices and streams through c10's registry: CUDA is there once the plug-in has been loaded.
#include "comm/devices.h"

#include <c10/core/AutogradState.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "tessera/base/error.h"
#include "tessera/base/log.h"

namespace tessera::comm::detail {

namespace {

c10::impl::VirtualGuardImpl guard_of(c10::Device device) {
  check<ConfigError>(c10::impl::hasDeviceGuardImpl(device.type()),
                     "device {}: LibTorch's support for it is not loaded; pass makers from load_cuda_makers(), or use cpu",
                     device.str());
  return {device.type()};
}

}  // namespace

c10::Device device_of_rank(c10::Device device, int local_rank, bool shared) {
  if (device.is_cpu() || device.has_index()) return device;
  const int count = guard_of(device).deviceCount();
  check<ConfigError>(count > 0 && (shared || local_rank < count),
                     "device {}: rank {} of this machine has no device of its own, as there are {}; start at most {} ranks "
                     "here, or let ranks share devices with --ranks threads",
                     device.str(), local_rank, count, count);
  return {device.type(), static_cast<c10::DeviceIndex>(local_rank % count)};
}

void use_device(c10::Device device) {
  if (device.is_cpu()) return;
  if (device.has_index()) guard_of(device).setDevice(device);
  c10::AutogradState::get_tls_state().set_multithreading_enabled(false);
}

void finish_device(c10::Device device) {
  if (device.is_cpu()) return;
  const c10::impl::VirtualGuardImpl guard = guard_of(device);
  guard.synchronizeDevice(device.has_index() ? device.index() : guard.getDevice().index());
}

RankThread::RankThread(c10::Device device) : device_(device) {
  use_device(device_);
  if (device_.is_cpu()) return;
  const c10::impl::VirtualGuardImpl guard = guard_of(device_);
  guard.exchangeStream(guard.getStreamFromGlobalPool(device_));
}

RankThread::~RankThread() {
  if (device_.is_cpu()) return;
  const c10::impl::VirtualGuardImpl guard(device_.type());
  try {
    guard.synchronizeStream(guard.getStream(device_));
  } catch (const std::exception& error) {
    // The rank's own failure, if there is one, has been thrown already.
    base::warn("device {}: {}", device_.str(), error.what());
  }
}

}  // namespace tessera::comm::detail
