// SPDX-License-Identifier: Apache-2.0
// One rank's place at the group's meeting point: arrive, wait for the others, agree, or fail together.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "comm/engine.h"
#include "comm/fingerprint.h"
#include "comm/region.h"

namespace tessera::comm::detail {

/// How long a waiting rank keeps its core before it sleeps.
struct Patience {
  int pauses = 0;
  int yields = 0;
};

/// A rank with a core of its own spins long, since waking a sleeping core costs tens of microseconds; with fewer cores
/// than ranks it hands the core over at once.
[[nodiscard]] Patience choose_patience(int ranks_on_machine);

/// Makes every member of the group throw `text` from now on; the first text wins. Any thread.
void poison(const Region& region, const std::string& text) noexcept;

struct ArrivalOptions {
  std::string group;
  std::chrono::milliseconds timeout{};
  Patience patience;
  /// False once a peer has ended. Empty: that cannot be told.
  std::function<bool(int)> is_alive;
};

class Arrival {
 public:
  Arrival(Region region, int rank, ArrivalOptions options, std::shared_ptr<Engine> engine);

  /// Names the collective that the next steps belong to.
  void begin(const Call& call);
  /// Says "I am here" and shows the peers `pointer`. Never blocks.
  void announce(const void* pointer = nullptr);
  /// Returns when every rank has arrived in the same call.
  /// Throws  CommunicationError: peers called something else, did not come in time, ended, or the group is poisoned
  void await();
  /// The last step of a call whose peers read this rank's memory: returns only when they have finished, even if the
  /// group was poisoned meanwhile.
  void await_readers();
  /// What `rank` showed in this step.
  [[nodiscard]] const void* pointer_of(int rank) const;

  /// One pause of a wait for mail: first a spin, then the core is handed over, then sleep until the mail bell of this
  /// rank rings. `round` counts the calls within one wait, `seen` is the bell's count before the caller last looked.
  /// Throws  CommunicationError when the group is poisoned
  void rest(int round, std::uint32_t seen);
  /// False once `rank` has ended; what it wrote before is then visible.
  [[nodiscard]] bool is_alive(int rank) const { return !options_.is_alive || options_.is_alive(rank); }
  [[nodiscard]] std::uint32_t mail_count() const;
  void ring_mail(int rank) const;

  void throw_if_poisoned() const;
  /// Poisons, then throws.
  [[noreturn]] void fail(const std::string& text) const;

  [[nodiscard]] int rank() const { return rank_; }
  [[nodiscard]] int size() const { return region_.shape().size; }
  [[nodiscard]] const Region& region() const { return region_; }
  [[nodiscard]] const std::string& group() const { return options_.group; }
  [[nodiscard]] std::chrono::milliseconds timeout() const { return options_.timeout; }
  void set_timeout(std::chrono::milliseconds timeout) { options_.timeout = timeout; }
  /// "all_reduce(16 bytes, float32, sum), call 57 of group tp".
  [[nodiscard]] std::string describe_call() const;

 private:
  using Clock = std::chrono::steady_clock;
  enum class OnPoison : std::uint8_t { kThrow, kIgnore };

  [[nodiscard]] bool has_arrived(int rank) const;
  void wait_for_all(OnPoison on_poison);
  void wait_for(int rank, OnPoison on_poison);
  void check_health(Clock::time_point deadline, OnPoison on_poison) const;
  void check_alive() const;
  void compare_fingerprints() const;
  [[noreturn]] void fail_late() const;
  [[noreturn]] void fail_mismatch() const;

  Region region_;
  int rank_;
  ArrivalOptions options_;
  std::shared_ptr<Engine> engine_;
  std::uint32_t step_ = 0;
  std::uint64_t calls_ = 0;
  std::uint64_t fingerprint_ = 0;
};

}  // namespace tessera::comm::detail
