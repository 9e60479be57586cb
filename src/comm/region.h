// SPDX-License-Identifier: Apache-2.0
// The memory that the ranks of one machine-local group share, and where in it everything lies.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

namespace tessera::comm::detail {

inline constexpr std::size_t kCacheLine = 64;

/// What fixes the layout; equal on all ranks of a group.
struct RegionShape {
  int size = 1;
  /// Bytes of one staging slot. A multiple of 64 * size.
  std::size_t chunk_bytes = 0;
  /// Bytes of one point-to-point ring. A multiple of 64.
  std::size_t ring_bytes = 0;
};

/// What a rank shows its peers when it arrives. Two lines alternate, so that a rank one step ahead never overwrites
/// what a peer still reads; it cannot be two steps ahead.
struct Published {
  std::uint64_t fingerprint = 0;
  std::uint64_t pointer = 0;
};

struct alignas(kCacheLine) Slot {
  std::atomic<std::uint32_t> arrivals;
  // Core on which the rank last arrived: who shares it with the rank must hand it over instead of spinning.
  std::atomic<std::uint32_t> core;
  Published published[2];
};

/// Counts events at one rank and how many sleep on the count.
struct alignas(kCacheLine) Bell {
  std::atomic<std::uint32_t> rings;
  std::atomic<std::uint32_t> sleepers;
};

/// First error of the group: once `state` is kSet every member throws `text`.
struct alignas(kCacheLine) Poison {
  static constexpr std::uint32_t kClean = 0;
  static constexpr std::uint32_t kBeingWritten = 1;
  static constexpr std::uint32_t kSet = 2;
  std::atomic<std::uint32_t> state;
  char text[1020];
};

/// Byte stream from one rank to another: `written` belongs to the sender, `read` to the receiver.
struct alignas(kCacheLine) RingCounters {
  alignas(kCacheLine) std::atomic<std::uint64_t> written;
  alignas(kCacheLine) std::atomic<std::uint64_t> read;
};

struct Ring {
  RingCounters* counters = nullptr;
  std::byte* bytes = nullptr;
  std::size_t capacity = 0;
};

/// Staging slots per rank: one being filled, one being reduced, one being copied out.
inline constexpr unsigned kStagingSlots = 3;

/// A handle; copies refer to the same memory, which lives as long as any of them. Fresh memory is all zero, which is
/// the valid initial state of everything in it. Pages are committed when first touched.
class Region {
 public:
  /// `memory` holds total_bytes(shape) bytes aligned to a page.
  Region(std::shared_ptr<std::byte> memory, const RegionShape& shape);

  [[nodiscard]] static std::size_t total_bytes(const RegionShape& shape);

  [[nodiscard]] const RegionShape& shape() const { return shape_; }
  [[nodiscard]] Poison& poison() const;
  [[nodiscard]] Slot& slot(int rank) const;
  /// Ranks asleep until `rank` arrives (only `sleepers` is used).
  [[nodiscard]] Bell& arrival_bell(int rank) const;
  /// Rung when something point-to-point happened that concerns `rank`.
  [[nodiscard]] Bell& mail_bell(int rank) const;
  /// Bytes that `rank` sends to each peer in an all-to-all.
  [[nodiscard]] std::uint64_t* sizes(int rank, unsigned parity) const;
  [[nodiscard]] std::byte* staging(int rank, unsigned slot) const;
  [[nodiscard]] Ring ring(int from, int to) const;

 private:
  friend class WeakRegion;

  std::shared_ptr<std::byte> memory_;
  RegionShape shape_;
};

/// Remembers a region without keeping its memory.
class WeakRegion {
 public:
  WeakRegion() = default;
  explicit WeakRegion(const Region& region) : memory_(region.memory_), shape_(region.shape_) {}
  /// Nothing once the last handle is gone.
  [[nodiscard]] std::optional<Region> lock() const {
    auto memory = memory_.lock();
    return memory ? std::optional<Region>(Region(std::move(memory), shape_)) : std::nullopt;
  }

 private:
  std::weak_ptr<std::byte> memory_;
  RegionShape shape_;
};

/// Zeroed memory private to this process, for ranks that are threads.
[[nodiscard]] Region make_private_region(const RegionShape& shape);

}  // namespace tessera::comm::detail
