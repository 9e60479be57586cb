// SPDX-License-Identifier: Apache-2.0
// Flags, waiting and the errors of a meeting.
#include "comm/arrival.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>
#include <vector>

#include "comm/futex.h"
#include "tessera/base/error.h"

namespace tessera::comm::detail {

namespace {

constexpr int kPausesPerLook = 16;
constexpr std::chrono::microseconds kSleep{20'000};
// With transfers under way a sleeping rank must look after them.
constexpr std::chrono::microseconds kShortSleep{500};

int usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

std::uint32_t this_core() { return static_cast<std::uint32_t>(sched_getcpu()); }

}  // namespace

Patience choose_patience(int ranks_on_machine) {
  if (ranks_on_machine <= usable_cores()) return {.pauses = 1500, .yields = 2000};
  return {.pauses = 32, .yields = 400};
}

void poison(const Region& region, const std::string& text) noexcept {
  Poison& poison = region.poison();
  std::uint32_t expected = Poison::kClean;
  if (!poison.state.compare_exchange_strong(expected, Poison::kBeingWritten)) return;
  const std::size_t length = std::min(text.size(), sizeof poison.text - 1);
  std::memcpy(poison.text, text.data(), length);
  poison.text[length] = '\0';
  poison.state.store(Poison::kSet, std::memory_order_seq_cst);
  for (int rank = 0; rank < region.shape().size; ++rank) {
    futex_wake_all(region.slot(rank).arrivals);
    futex_wake_all(region.mail_bell(rank).rings);
  }
}

Arrival::Arrival(Region region, int rank, ArrivalOptions options, std::shared_ptr<Engine> engine)
    : region_(std::move(region)), rank_(rank), options_(std::move(options)), engine_(std::move(engine)) {}

void Arrival::begin(const Call& call) {
  throw_if_poisoned();
  fingerprint_ = pack(call);
  ++calls_;
}

void Arrival::announce(const void* pointer) {
  ++step_;
  Slot& slot = region_.slot(rank_);
  slot.published[step_ & 1U] = Published{fingerprint_, std::bit_cast<std::uint64_t>(pointer)};
  slot.core.store(this_core(), std::memory_order_relaxed);
  // Sequentially consistent with the sleeper's count-then-look, so that no sleeper is missed.
  slot.arrivals.store(step_, std::memory_order_seq_cst);
  if (region_.arrival_bell(rank_).sleepers.load(std::memory_order_seq_cst) != 0) futex_wake_all(slot.arrivals);
}

void Arrival::await() {
  wait_for_all(OnPoison::kThrow);
  compare_fingerprints();
}

void Arrival::await_readers() { wait_for_all(OnPoison::kIgnore); }

const void* Arrival::pointer_of(int rank) const {
  return std::bit_cast<const void*>(region_.slot(rank).published[step_ & 1U].pointer);
}

bool Arrival::has_arrived(int rank) const {
  const std::uint32_t arrivals = region_.slot(rank).arrivals.load(std::memory_order_acquire);
  return static_cast<std::int32_t>(arrivals - step_) >= 0;
}

void Arrival::wait_for_all(OnPoison on_poison) {
  for (int rank = 0; rank < size(); ++rank) {
    if (rank != rank_ && !has_arrived(rank)) wait_for(rank, on_poison);
  }
}

void Arrival::wait_for(int rank, OnPoison on_poison) {
  const bool has_mail = engine_->has_endpoints();
  const bool shares_core = region_.slot(rank).core.load(std::memory_order_relaxed) == this_core();
  const int pauses = shares_core ? 0 : options_.patience.pauses;
  for (int i = 0; i < pauses; ++i) {
    cpu_relax();
    if (has_arrived(rank)) return;
    if (has_mail && i % kPausesPerLook == 0) engine_->progress();
  }
  const Clock::time_point deadline = Clock::now() + options_.timeout;
  for (int i = 0; i < options_.patience.yields; ++i) {
    sched_yield();
    if (has_arrived(rank)) return;
    if (has_mail) engine_->progress();
  }
  const Slot& slot = region_.slot(rank);
  Bell& bell = region_.arrival_bell(rank);
  while (!has_arrived(rank)) {
    check_health(deadline, on_poison);
    if (has_mail) engine_->progress();
    const std::uint32_t seen = slot.arrivals.load(std::memory_order_acquire);
    bell.sleepers.fetch_add(1, std::memory_order_seq_cst);
    if (!has_arrived(rank)) futex_wait(slot.arrivals, seen, has_mail ? kShortSleep : kSleep);
    bell.sleepers.fetch_sub(1, std::memory_order_relaxed);
  }
}

void Arrival::check_health(Clock::time_point deadline, OnPoison on_poison) const {
  if (on_poison == OnPoison::kThrow) throw_if_poisoned();
  check_alive();
  if (Clock::now() >= deadline) fail_late();
}

void Arrival::check_alive() const {
  for (int rank = 0; rank < size(); ++rank) {
    // In this order: a peer that arrived and then ended has done its part of this step.
    if (rank == rank_ || is_alive(rank) || has_arrived(rank)) continue;
    fail(fmt::format("{}: rank {} has ended while rank {} waited for it; if it failed, its own message says why",
                     describe_call(), rank, rank_));
  }
}

void Arrival::compare_fingerprints() const {
  for (int rank = 0; rank < size(); ++rank) {
    if (region_.slot(rank).published[step_ & 1U].fingerprint != fingerprint_) fail_mismatch();
  }
}

std::string Arrival::describe_call() const {
  return fmt::format("{}, call {} of group {}", describe(unpack(fingerprint_)), calls_, options_.group);
}

void Arrival::fail_late() const {
  std::string late;
  for (int rank = 0; rank < size(); ++rank) {
    if (rank == rank_ || has_arrived(rank)) continue;
    late += fmt::format("{}{}", late.empty() ? "" : ", ", rank);
  }
  const bool several = late.find(',') != std::string::npos;
  fail(fmt::format(
      "{}: rank{} {} of {} did not arrive within {} ms (seen by rank {}); see what {} last did, or raise "
      "the timeout",
      describe_call(), several ? "s" : "", late, size(), options_.timeout.count(), rank_, several ? "they" : "it"));
}

// Compares with rank 0 and not with the caller, so that all ranks give the same message.
void Arrival::fail_mismatch() const {
  const auto shown = [this](int rank) { return region_.slot(rank).published[step_ & 1U].fingerprint; };
  int other = 1;
  while (other < size() - 1 && shown(other) == shown(0)) ++other;
  fail(
      fmt::format("rank {} called {} where rank 0 called {}, call {} of group {}; every rank must make the same calls "
                  "in the same order",
                  other, describe(unpack(shown(other))), describe(unpack(shown(0))), calls_, options_.group));
}

std::uint32_t Arrival::mail_count() const { return region_.mail_bell(rank_).rings.load(std::memory_order_acquire); }

void Arrival::ring_mail(int rank) const {
  Bell& bell = region_.mail_bell(rank);
  bell.rings.fetch_add(1, std::memory_order_seq_cst);
  if (bell.sleepers.load(std::memory_order_seq_cst) != 0) futex_wake_all(bell.rings);
}

void Arrival::rest(int round, std::uint32_t seen) {
  if (round < options_.patience.pauses / kPausesPerLook) {
    for (int i = 0; i < kPausesPerLook; ++i) cpu_relax();
    return;
  }
  throw_if_poisoned();
  if (round < options_.patience.pauses / kPausesPerLook + options_.patience.yields) {
    sched_yield();
    return;
  }
  Bell& bell = region_.mail_bell(rank_);
  bell.sleepers.fetch_add(1, std::memory_order_seq_cst);
  futex_wait(bell.rings, seen, kShortSleep);
  bell.sleepers.fetch_sub(1, std::memory_order_relaxed);
}

void Arrival::throw_if_poisoned() const {
  const Poison& poison = region_.poison();
  if (poison.state.load(std::memory_order_acquire) == Poison::kSet) throw CommunicationError(poison.text);
}

void Arrival::fail(const std::string& text) const {
  poison(region_, text);
  throw_if_poisoned();
  throw CommunicationError(text);
}

}  // namespace tessera::comm::detail
