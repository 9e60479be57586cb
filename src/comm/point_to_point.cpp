// SPDX-License-Identifier: Apache-2.0
// Framing, matching and waiting of point-to-point messages.
#include "comm/point_to_point.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "comm/epoch.h"
#include "tessera/base/error.h"

namespace tessera::comm::detail {

namespace {

// With direct reach, messages up to this size travel in the ring, so that their sender need not wait.
constexpr std::size_t kInlineBytes = 4096;
// A message that only says which epoch its sender is in.
constexpr int kEpochTag = -1;

std::size_t readable(const Ring& ring) {
  return ring.counters->written.load(std::memory_order_acquire) - ring.counters->read.load(std::memory_order_relaxed);
}

std::size_t writable(const Ring& ring) {
  return ring.capacity -
         (ring.counters->written.load(std::memory_order_relaxed) - ring.counters->read.load(std::memory_order_acquire));
}

// Both copy at most two runs, as the ring wraps once.
void write_ring(const Ring& ring, const std::byte* source, std::size_t bytes) {
  const std::uint64_t written = ring.counters->written.load(std::memory_order_relaxed);
  const std::size_t at = written % ring.capacity;
  const std::size_t first = std::min(bytes, ring.capacity - at);
  std::memcpy(ring.bytes + at, source, first);
  std::memcpy(ring.bytes, source + first, bytes - first);
  ring.counters->written.store(written + bytes, std::memory_order_release);
}

void read_ring(const Ring& ring, std::byte* target, std::size_t bytes) {
  const std::uint64_t read = ring.counters->read.load(std::memory_order_relaxed);
  const std::size_t at = read % ring.capacity;
  const std::size_t first = std::min(bytes, ring.capacity - at);
  std::memcpy(target, ring.bytes + at, first);
  std::memcpy(target + first, ring.bytes, bytes - first);
  ring.counters->read.store(read + bytes, std::memory_order_release);
}

}  // namespace

PointToPoint::PointToPoint(Arrival& arrival, Reach reach, std::shared_ptr<Engine> engine)
    : arrival_(arrival), reach_(reach), engine_(std::move(engine)), peers_(static_cast<std::size_t>(arrival.size())) {}

PointToPoint::~PointToPoint() {
  if (active_) engine_->remove(this);
  collect_taken();
  // A receiver may still follow a pointer that nobody waited for; those bytes must outlive this rank.
  for (std::shared_ptr<Transfer>& transfer : handed_over_) new std::shared_ptr<Transfer>(std::move(transfer));
}

void PointToPoint::activate() {
  if (!active_) engine_->add(this);
  active_ = true;
}

void PointToPoint::post_send(std::shared_ptr<Transfer> transfer) {
  activate();
  const int to = transfer->peer;
  peer(to).sends.push_back(std::move(transfer));
  push(to);
}

void PointToPoint::post_receive(std::shared_ptr<Transfer> transfer) {
  activate();
  for (int from = 0; from < arrival_.size(); ++from) {
    if (transfer->peer != Transfer::kAnyRank && transfer->peer != from) continue;
    auto& kept = peer(from).kept;
    const auto match = std::find_if(kept.begin(), kept.end(),
                                    [&](const auto& incoming) { return belongs(incoming->header, *transfer); });
    if (match == kept.end()) continue;
    finish(**match, *transfer, from);
    kept.erase(match);
    return;
  }
  if (comes_never(*transfer)) return fail_early(*transfer);
  receives_.push_back(std::move(transfer));
}

void PointToPoint::progress() {
  for (int rank = 0; rank < arrival_.size(); ++rank) {
    if (!peer(rank).sends.empty()) push(rank);
    pull(rank);
  }
  if (!handed_over_.empty()) collect_taken();
}

bool PointToPoint::belongs(const Header& header, const Transfer& receive) {
  return header.tag == receive.tag && header.epoch == receive.epoch;
}

bool PointToPoint::is_stale(const Incoming& incoming) const {
  return incoming.header.epoch != 0 && incoming.header.epoch < epoch_;
}

void PointToPoint::start_epoch(std::uint64_t epoch) {
  epoch_ = epoch;
  for (Peer& peer : peers_) {
    std::erase_if(peer.kept, [this](const auto& incoming) { return is_stale(*incoming); });
  }
}

void PointToPoint::tell_epoch() {
  for (int rank = 0; rank < arrival_.size(); ++rank) {
    if (rank == arrival_.rank()) continue;
    auto notice = std::make_shared<Transfer>();
    notice->peer = rank;
    notice->tag = kEpochTag;
    notice->epoch = epoch_;
    post_send(std::move(notice));
  }
}

void PointToPoint::note_epoch(int from, std::uint64_t epoch) {
  if (epoch <= peer(from).epoch) return;
  peer(from).epoch = epoch;
  std::erase_if(receives_, [this](const std::shared_ptr<Transfer>& receive) {
    const bool never = comes_never(*receive);
    if (never) fail_early(*receive);
    return never;
  });
}

// A pair's messages stay in order, and what came before has been looked through.
bool PointToPoint::comes_never(const Transfer& receive) const {
  if (receive.peer == Transfer::kAnyRank || receive.epoch == 0) return false;
  return receive.epoch < peers_[static_cast<std::size_t>(receive.peer)].epoch;
}

void PointToPoint::fail_early(Transfer& receive) const {
  receive.complete = true;
  const std::string text = fmt::format(
      "receive({} bytes, {}, tag {}) of rank {} from rank {} in group {}: rank {} ended its step early; its own "
      "message says why",
      receive.piece.bytes, dtype_name(receive.dtype), receive.tag, arrival_.rank(), receive.peer, arrival_.group(),
      receive.peer);
  const std::uint64_t epoch = peers_[static_cast<std::size_t>(receive.peer)].epoch;
  receive.error = std::make_exception_ptr(EpochOver(text, epoch));
}

void PointToPoint::push(int to) {
  Peer& target = peer(to);
  const Ring ring = arrival_.region().ring(arrival_.rank(), to);
  bool moved = false;
  while (!target.sends.empty()) {
    Transfer& transfer = *target.sends.front();
    const bool by_pointer = reach_ == Reach::kDirect && transfer.piece.bytes > kInlineBytes;
    if (!target.header_sent && !push_header(ring, transfer, by_pointer)) break;
    target.header_sent = true;
    moved = true;
    if (by_pointer) {
      handed_over_.push_back(target.sends.front());
    } else {
      const std::size_t bytes = std::min(writable(ring), transfer.piece.bytes - transfer.offset);
      write_ring(ring, transfer.piece.data + transfer.offset, bytes);
      transfer.offset += bytes;
      if (transfer.offset < transfer.piece.bytes) break;
      transfer.complete = true;
    }
    target.header_sent = false;
    target.sends.pop_front();
  }
  if (moved) arrival_.ring_mail(to);
}

bool PointToPoint::push_header(const Ring& ring, Transfer& transfer, bool by_pointer) {
  if (writable(ring) < sizeof(Header)) return false;
  Header header{.bytes = transfer.piece.bytes, .epoch = transfer.epoch, .tag = transfer.tag};
  if (by_pointer) {
    header.pointer = std::bit_cast<std::uint64_t>(transfer.piece.data);
    header.taken = std::bit_cast<std::uint64_t>(&transfer.taken);
  }
  write_ring(ring, reinterpret_cast<const std::byte*>(&header), sizeof header);
  return true;
}

void PointToPoint::collect_taken() {
  std::erase_if(handed_over_, [](const std::shared_ptr<Transfer>& transfer) {
    transfer->complete = transfer->taken.load(std::memory_order_acquire) != 0;
    return transfer->complete;
  });
}

void PointToPoint::pull(int from) {
  const Ring ring = arrival_.region().ring(from, arrival_.rank());
  bool moved = false;
  while (peer(from).arriving != nullptr || open_incoming(ring, from)) {
    moved = true;
    if (!pull_payload(ring, from)) break;
  }
  if (moved) arrival_.ring_mail(from);
}

bool PointToPoint::open_incoming(const Ring& ring, int from) {
  if (readable(ring) < sizeof(Header)) return false;
  auto incoming = std::make_unique<Incoming>();
  read_ring(ring, reinterpret_cast<std::byte*>(&incoming->header), sizeof(Header));
  incoming->receive = take_matching_receive(from, incoming->header);
  const bool fits = incoming->receive != nullptr && incoming->receive->piece.bytes == incoming->header.bytes;
  if (!fits) incoming->kept.resize(incoming->header.bytes);
  peer(from).arriving = std::move(incoming);
  return true;
}

// True once the whole message is here.
bool PointToPoint::pull_payload(const Ring& ring, int from) {
  Incoming& incoming = *peer(from).arriving;
  std::byte* target = incoming.kept.empty() && incoming.receive ? incoming.receive->piece.data : incoming.kept.data();
  if (incoming.header.pointer != 0) {
    std::memcpy(target, std::bit_cast<const std::byte*>(incoming.header.pointer), incoming.header.bytes);
    std::bit_cast<std::atomic<std::uint32_t>*>(incoming.header.taken)->store(1, std::memory_order_release);
  } else {
    const std::size_t bytes = std::min(readable(ring), incoming.header.bytes - incoming.offset);
    if (bytes > 0) read_ring(ring, target + incoming.offset, bytes);
    incoming.offset += bytes;
    if (incoming.offset < incoming.header.bytes) return false;
  }
  std::unique_ptr<Incoming> whole = std::move(peer(from).arriving);
  note_epoch(from, whole->header.epoch);
  if (whole->header.tag == kEpochTag) return true;
  // Somebody may have asked for it while it was on its way.
  if (!whole->receive) whole->receive = take_matching_receive(from, whole->header);
  if (whole->receive) {
    finish(*whole, *whole->receive, from);
  } else if (!is_stale(*whole)) {
    peer(from).kept.push_back(std::move(whole));
  }
  return true;
}

std::shared_ptr<Transfer> PointToPoint::take_matching_receive(int from, const Header& header) {
  const auto match = std::find_if(receives_.begin(), receives_.end(), [&](const auto& receive) {
    return belongs(header, *receive) && (receive->peer == from || receive->peer == Transfer::kAnyRank);
  });
  if (match == receives_.end()) return nullptr;
  std::shared_ptr<Transfer> receive = std::move(*match);
  receives_.erase(match);
  return receive;
}

void PointToPoint::finish(Incoming& incoming, Transfer& receive, int from) {
  receive.peer = from;
  receive.complete = true;
  if (incoming.header.bytes != receive.piece.bytes) {
    const std::string text = fmt::format(
        "receive({} bytes, {}, tag {}) of rank {} from rank {} in group {}: the message has {} bytes; send "
        "and receive tensors of one size",
        receive.piece.bytes, dtype_name(receive.dtype), receive.tag, arrival_.rank(), from, arrival_.group(),
        incoming.header.bytes);
    receive.error = std::make_exception_ptr(CommunicationError(text));
    poison(arrival_.region(), text);
  } else if (!incoming.kept.empty()) {
    std::memcpy(receive.piece.data, incoming.kept.data(), incoming.kept.size());
  }
}

void PointToPoint::wait(const Transfer& transfer, const char* operation) {
  const auto deadline = std::chrono::steady_clock::now() + arrival_.timeout();
  const int wanted = transfer.peer;
  const auto describe = [&] {
    return fmt::format("{}({} bytes, {}, tag {}) between rank {} and {} in group {}", operation, transfer.piece.bytes,
                       dtype_name(transfer.dtype), transfer.tag, arrival_.rank(),
                       wanted == Transfer::kAnyRank ? "any rank" : fmt::format("rank {}", wanted), arrival_.group());
  };
  for (int round = 0; !transfer.complete; ++round) {
    const std::uint32_t seen = arrival_.mail_count();
    const bool peer_alive = wanted == Transfer::kAnyRank || round % 64 != 63 || arrival_.is_alive(wanted);
    engine_->progress();
    if (transfer.complete) break;
    if (!peer_alive) arrival_.fail(fmt::format("{}: rank {} has ended", describe(), wanted));
    if (std::chrono::steady_clock::now() >= deadline) {
      arrival_.fail(
          fmt::format("{}: the other side did not come within {} ms; check that it makes the matching call "
                      "with this tag, or raise the timeout",
                      describe(), arrival_.timeout().count()));
    }
    arrival_.rest(round, seen);
  }
  if (transfer.error) std::rethrow_exception(transfer.error);
}

}  // namespace tessera::comm::detail
