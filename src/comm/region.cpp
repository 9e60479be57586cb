// SPDX-License-Identifier: Apache-2.0
// Layout of a region: poison, one block of flags and sizes per rank, staging slots, then the rings.
#include "comm/region.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "tessera/base/error.h"

namespace tessera::comm::detail {

namespace {

constexpr std::size_t kPage = 4096;

constexpr std::size_t round_up(std::size_t value, std::size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

std::size_t ranks(const RegionShape& shape) { return static_cast<std::size_t>(shape.size); }

std::size_t flags_bytes(const RegionShape& shape) {
  return sizeof(Slot) + 2 * sizeof(Bell) + round_up(2 * ranks(shape) * sizeof(std::uint64_t), kCacheLine);
}

std::size_t staging_begin(const RegionShape& shape) {
  return round_up(sizeof(Poison) + ranks(shape) * flags_bytes(shape), kPage);
}

std::size_t rings_begin(const RegionShape& shape) {
  return round_up(staging_begin(shape) + ranks(shape) * kStagingSlots * shape.chunk_bytes, kPage);
}

std::size_t ring_stride(const RegionShape& shape) { return sizeof(RingCounters) + shape.ring_bytes; }

}  // namespace

Region::Region(std::shared_ptr<std::byte> memory, const RegionShape& shape)
    : memory_(std::move(memory)), shape_(shape) {}

std::size_t Region::total_bytes(const RegionShape& shape) {
  return round_up(rings_begin(shape) + ranks(shape) * ranks(shape) * ring_stride(shape), kPage);
}

Poison& Region::poison() const { return *reinterpret_cast<Poison*>(memory_.get()); }

Slot& Region::slot(int rank) const {
  return *reinterpret_cast<Slot*>(memory_.get() + sizeof(Poison) +
                                  static_cast<std::size_t>(rank) * flags_bytes(shape_));
}

Bell& Region::arrival_bell(int rank) const {
  return *reinterpret_cast<Bell*>(reinterpret_cast<std::byte*>(&slot(rank)) + sizeof(Slot));
}

Bell& Region::mail_bell(int rank) const { return *(&arrival_bell(rank) + 1); }

std::uint64_t* Region::sizes(int rank, unsigned parity) const {
  return reinterpret_cast<std::uint64_t*>(&mail_bell(rank) + 1) + parity * ranks(shape_);
}

std::byte* Region::staging(int rank, unsigned slot) const {
  return memory_.get() + staging_begin(shape_) +
         (static_cast<std::size_t>(rank) * kStagingSlots + slot) * shape_.chunk_bytes;
}

Ring Region::ring(int from, int to) const {
  const std::size_t index = static_cast<std::size_t>(from) * ranks(shape_) + static_cast<std::size_t>(to);
  std::byte* begin = memory_.get() + rings_begin(shape_) + index * ring_stride(shape_);
  return Ring{reinterpret_cast<RingCounters*>(begin), begin + sizeof(RingCounters), shape_.ring_bytes};
}

Region make_private_region(const RegionShape& shape) {
  const std::size_t bytes = Region::total_bytes(shape);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  check<CommunicationError>(memory != MAP_FAILED, "thread transport: cannot map {} bytes for {} ranks: {}", bytes,
                            shape.size, std::strerror(errno));
  return Region(
      std::shared_ptr<std::byte>(static_cast<std::byte*>(memory), [bytes](std::byte* begin) { munmap(begin, bytes); }),
      shape);
}

}  // namespace tessera::comm::detail
