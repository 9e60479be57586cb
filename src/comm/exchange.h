// SPDX-License-Identifier: Apache-2.0
// The one way in which ranks of a machine read each other's data, in place or through staging slots.
#pragma once

#include <c10/util/SmallVector.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <exception>

#include "comm/arrival.h"
#include "comm/region.h"

namespace tessera::comm::detail {

/// Contiguous bytes of the caller.
struct Piece {
  std::byte* data = nullptr;
  std::size_t bytes = 0;
};
using Pieces = c10::SmallVector<Piece, 8>;

/// How a group's ranks reach each other's memory.
enum class Reach : std::uint8_t {
  /// Peers' pointers are valid here: threads of one process.
  kDirect,
  /// Only the region is common: processes.
  kStaged,
};

/// Above this many bytes direct reach reads peers' buffers in place; below, a copy into staging saves a meeting.
inline constexpr std::size_t kDirectFromBytes = 16 * 1024;

/// Where piece `p` of rank `r` lies, from the byte on at which the current round begins.
class View {
 public:
  View(const Arrival& arrival, unsigned slot, std::size_t stride) : arrival_(arrival), slot_(slot), stride_(stride) {}
  [[nodiscard]] const std::byte* operator()(int rank, std::size_t piece) const {
    if (stride_ == 0) return static_cast<const Piece*>(arrival_.pointer_of(rank))[piece].data;
    return arrival_.region().staging(rank, slot_) + piece * stride_;
  }

 private:
  const Arrival& arrival_;
  unsigned slot_;
  std::size_t stride_;
};

/// Staging slots of one rank and the meetings around them. Slots rotate over calls: a rank fills slot k only after all
/// ranks arrived with slot k - 1 filled, hence after all have finished with slot k - 2.
class Exchange {
 public:
  Exchange(Arrival& arrival, Reach reach) : arrival_(arrival), reach_(reach) {}

  [[nodiscard]] bool is_direct(std::size_t bytes) const { return reach_ == Reach::kDirect && bytes > kDirectFromBytes; }

  /// Shows `exposed` (empty: this rank only reads) to all peers and calls consume(begin, bytes, view) with the bytes
  /// [begin, begin + bytes) of every piece in view, until the longest piece has been covered. `num_pieces` and
  /// `piece_bytes`, the longest piece of any rank, are equal on all ranks.
  template <class Consume>
  void run(const Pieces& exposed, std::size_t num_pieces, std::size_t piece_bytes, Consume&& consume) {
    if (is_direct(num_pieces * piece_bytes)) {
      run_direct(exposed, [&](const View& view) { consume(std::size_t{0}, piece_bytes, view); });
      return;
    }
    std::size_t begin = 0;
    do {
      const std::size_t part = part_bytes(num_pieces);
      stage(exposed, begin, part);
      arrival_.announce();
      arrival_.await();
      consume(begin, std::min(part, piece_bytes - begin), View(arrival_, take_slot(), part));
      begin += part;
    } while (begin < piece_bytes);
  }

  /// One round over peers' own memory, which stays untouched until all have read it. The pieces may differ by rank.
  template <class Consume>
  void run_direct(const Pieces& exposed, Consume&& consume) {
    arrival_.announce(exposed.data());
    arrival_.await();
    try {
      consume(View(arrival_, 0, 0));
    } catch (const std::exception& error) {
      poison(arrival_.region(), error.what());
      leave();
      throw;
    }
    leave();
  }

  /// Bytes of each piece that one staging slot holds.
  [[nodiscard]] std::size_t part_bytes(std::size_t num_pieces) const {
    return arrival_.region().shape().chunk_bytes / num_pieces / kCacheLine * kCacheLine;
  }
  /// Copies the bytes from `begin` on of every piece, at most `part` each, into the slot being filled.
  void stage(const Pieces& exposed, std::size_t begin, std::size_t part) const {
    std::byte* staging = arrival_.region().staging(arrival_.rank(), slot_);
    for (std::size_t p = 0; p < exposed.size(); ++p) {
      if (exposed[p].bytes <= begin) continue;
      std::memcpy(staging + p * part, exposed[p].data + begin, std::min(part, exposed[p].bytes - begin));
    }
  }
  /// The slot being filled.
  [[nodiscard]] unsigned slot() const { return slot_; }
  /// The slot just filled; the next one is filled from now on.
  unsigned take_slot() {
    const unsigned taken = slot_;
    slot_ = (slot_ + 1) % kStagingSlots;
    return taken;
  }
  /// Rows of sizes alternate as the published lines do.
  unsigned next_sizes_parity() { return ++all_to_alls_ & 1U; }
  [[nodiscard]] Arrival& arrival() const { return arrival_; }
  [[nodiscard]] Reach reach() const { return reach_; }

 private:
  void leave() {
    arrival_.announce();
    arrival_.await_readers();
  }

  Arrival& arrival_;
  Reach reach_;
  unsigned slot_ = 0;
  unsigned all_to_alls_ = 0;
};

}  // namespace tessera::comm::detail
