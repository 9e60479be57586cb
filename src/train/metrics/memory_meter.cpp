// SPDX-License-Identifier: Apache-2.0
// LibTorch's allocators report to whoever stands in the thread's profiler slot.
#include "tessera/train/memory_meter.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>

namespace tessera::train {

struct MemoryMeter::State {
  struct Count final : c10::MemoryReportingInfoBase {
    void reportMemoryUsage(void*, std::int64_t size, std::size_t, std::size_t, c10::Device) override {
      allocated += size;
      peak = std::max(peak, allocated);
    }
    [[nodiscard]] bool memoryProfilingEnabled() const override { return true; }

    std::int64_t allocated = 0;
    std::int64_t peak = 0;
  };

  std::shared_ptr<Count> count = std::make_shared<Count>();
  c10::DebugInfoGuard guard{c10::DebugInfoKind::PROFILER_STATE, count};
};

MemoryMeter::MemoryMeter() : state_(std::make_unique<State>()) {}
MemoryMeter::~MemoryMeter() = default;
std::int64_t MemoryMeter::allocated_bytes() const noexcept { return state_->count->allocated; }
std::int64_t MemoryMeter::peak_bytes() const noexcept { return state_->count->peak; }
void MemoryMeter::reset_peak() noexcept { state_->count->peak = state_->count->allocated; }
void MemoryMeter::remember_sizes() noexcept { FLAGS_caffe2_report_cpu_memory_usage = true; }

}  // namespace tessera::train
