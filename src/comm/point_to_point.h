// SPDX-License-Identifier: Apache-2.0
// Tagged messages between two ranks of a machine-local group, resumable at any byte.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "comm/arrival.h"
#include "comm/exchange.h"

namespace tessera::comm::detail {

/// One send or receive under way. The bytes stay alive and untouched until `complete`.
struct Transfer {
  /// Receives from whoever comes first.
  static constexpr int kAnyRank = -1;

  int peer = 0;
  int tag = 0;
  std::uint64_t epoch = 0;
  Piece piece;
  /// Owns the bytes of `piece`.
  std::shared_ptr<void> keep;
  c10::ScalarType dtype = c10::ScalarType::Byte;
  std::size_t offset = 0;
  bool complete = false;
  std::exception_ptr error;
  /// Set by a receiver that read this rank's memory directly.
  std::atomic<std::uint32_t> taken{0};
};

/// A rank's sends and receives in one group.
///
/// Messages of one pair with one tag and epoch keep their order; receives with others overtake. A message that nobody
/// has asked for yet is kept aside while its receiver waits for something else: a blocked sender always gets through.
/// Through staging the payload streams in a ring of each pair. With direct reach a large message is a pointer, and the
/// receiver copies once.
class PointToPoint final : public Endpoint {
 public:
  PointToPoint(Arrival& arrival, Reach reach, std::shared_ptr<Engine> engine);
  ~PointToPoint() override;

  void post_send(std::shared_ptr<Transfer> transfer);
  void post_receive(std::shared_ptr<Transfer> transfer);
  void progress() override;
  /// Drops messages of epochs 1 to `epoch` - 1, those that come later too.
  void start_epoch(std::uint64_t epoch);
  /// Peers that wait for a message of an earlier epoch from this rank throw EpochOver.
  void tell_epoch();
  /// Progresses everything until `transfer` is complete.
  /// Throws  CommunicationError when the peer does not come in time, has ended or sent another number of bytes
  void wait(const Transfer& transfer, const char* operation);

 private:
  // Precedes every payload in a ring.
  struct Header {
    std::uint64_t bytes = 0;
    std::uint64_t epoch = 0;
    std::int64_t tag = 0;
    // With direct reach: the sender's bytes and its `taken` flag. Zero if the payload follows in the ring.
    std::uint64_t pointer = 0;
    std::uint64_t taken = 0;
  };
  // A message that arrives, in the receive that asked for it or in a buffer of its own.
  struct Incoming {
    Header header;
    std::shared_ptr<Transfer> receive;
    std::vector<std::byte> kept;
    std::size_t offset = 0;
  };
  struct Peer {
    std::deque<std::shared_ptr<Transfer>> sends;
    bool header_sent = false;
    std::unique_ptr<Incoming> arriving;
    // What it sent last was of this one; earlier ones are over.
    std::uint64_t epoch = 0;
    std::deque<std::unique_ptr<Incoming>> kept;
  };

  [[nodiscard]] static bool belongs(const Header& header, const Transfer& receive);
  [[nodiscard]] Peer& peer(int rank) { return peers_[static_cast<std::size_t>(rank)]; }
  void activate();
  void push(int to);
  bool push_header(const Ring& ring, Transfer& transfer, bool by_pointer);
  void collect_taken();
  void pull(int from);
  bool open_incoming(const Ring& ring, int from);
  bool pull_payload(const Ring& ring, int from);
  [[nodiscard]] std::shared_ptr<Transfer> take_matching_receive(int from, const Header& header);
  [[nodiscard]] bool is_stale(const Incoming& incoming) const;
  void note_epoch(int from, std::uint64_t epoch);
  [[nodiscard]] bool comes_never(const Transfer& receive) const;
  void fail_early(Transfer& receive) const;
  void finish(Incoming& incoming, Transfer& receive, int from);

  Arrival& arrival_;
  Reach reach_;
  std::shared_ptr<Engine> engine_;
  bool active_ = false;
  std::uint64_t epoch_ = 0;
  std::vector<Peer> peers_;
  std::deque<std::shared_ptr<Transfer>> receives_;
  // Handed over by pointer and not yet taken.
  std::vector<std::shared_ptr<Transfer>> handed_over_;
};

}  // namespace tessera::comm::detail
