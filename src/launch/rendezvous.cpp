// SPDX-License-Identifier: Apache-2.0
// Stores and the handshake.
#include "launch/rendezvous.h"

#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <unistd.h>

#include <thread>
#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "launch/numbers.h"
#include "launch/sockets.h"

namespace tessera::launcher::detail {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kShortestPause{1};
constexpr std::chrono::milliseconds kLongestPause{20};

double seconds(std::chrono::milliseconds duration) { return std::chrono::duration<double>(duration).count(); }

std::string hello_key(int rank) { return fmt::format("hello/{}", rank); }

std::vector<std::uint8_t> to_bytes(const std::string& text) { return {text.begin(), text.end()}; }

std::string read_text(c10d::Store& store, const std::string& key) {
  const auto bytes = store.get(key);
  return {bytes.begin(), bytes.end()};
}

c10::intrusive_ptr<c10d::Store> open_store_file(const RankEnvironment& ranks) {
  const std::string path = fmt::format("/proc/self/fd/{}", ranks.store_fd.value());
  char target[64] = {};
  const bool ours = ::readlink(path.c_str(), target, sizeof target - 1) > 0 &&
                    std::string_view(target).starts_with("/memfd:tessera-store");
  check<ConfigError>(ours,
                     "rendezvous: TESSERA_STORE_FD={} is not the file that the launcher made; a wrapper between "
                     "`tessera run` and this program must not close inherited descriptors",
                     ranks.store_fd.value());
  return c10::make_intrusive<c10d::FileStore>(path, ranks.world_size);
}

c10::intrusive_ptr<c10d::Store> open_tcp_store(const RankEnvironment& ranks, std::chrono::milliseconds timeout) {
  c10d::TCPStoreOptions options;
  options.port = static_cast<std::uint16_t>(ranks.master_port);
  options.timeout = timeout;
  options.waitWorkers = false;
  options.numWorkers = static_cast<std::size_t>(ranks.world_size);
  options.isServer = ranks.rank == 0 && !ranks.launcher_hosts_store;
  if (options.isServer) {
    // The store would listen on every interface by itself.
    options.masterListenFd = bind_to(ranks.master_address, ranks.master_port).release();
  } else if (!wait_for_listener(ranks.master_address, ranks.master_port, Clock::now() + timeout)) {
    // Asked here because the store's own client prints stack traces while it retries.
    throw RendezvousError(fmt::format(
        "rendezvous (rank {} of {}): nobody answered on {}:{} within {:g} s; check that rank 0 runs there and that "
        "MASTER_ADDR and MASTER_PORT name it",
        ranks.rank, ranks.world_size, ranks.master_address, ranks.master_port, seconds(timeout)));
  }
  return c10::make_intrusive<c10d::TCPStore>(resolve(ranks.master_address), options);
}

/// Polls, because the stores' own wait cannot tell which keys are missing and logs its time-outs.
template <class Condition>
bool wait_until(const Condition& condition, Clock::time_point deadline) {
  auto pause = kShortestPause;
  while (!condition()) {
    if (Clock::now() >= deadline) {
      return false;
    }
    std::this_thread::sleep_for(pause);
    pause = std::min(pause * 2, kLongestPause);
  }
  return true;
}

void wait_for_everyone(c10d::Store& store, const Handshake& handshake, Clock::time_point deadline) {
  int next = 0;
  const auto all_here = [&] {
    while (next < handshake.world_size && store.check({hello_key(next)})) {
      ++next;
    }
    return next == handshake.world_size;
  };
  if (wait_until(all_here, deadline)) {
    return;
  }
  std::vector<int> missing;
  std::vector<int> here;
  for (int rank = 0; rank < handshake.world_size; ++rank) {
    (store.check({hello_key(rank)}) ? here : missing).push_back(rank);
  }
  throw RendezvousError(fmt::format("rendezvous: {} did not come within {:g} s ({} waited); see why they did not start",
                                    format_ranks_of(missing, handshake.world_size), seconds(handshake.timeout),
                                    format_ranks_of(here, handshake.world_size)));
}

std::string encode(const std::map<std::string, std::string>& fields) {
  std::string text;
  for (const auto& [name, value] : fields) {
    text += fmt::format("{}={}\n", name, value);
  }
  return text;
}

/// First line in which the two differ, as "name=a" and "name=b".
std::pair<std::string, std::string> first_difference(std::string_view ours, std::string_view theirs) {
  while (!ours.empty() || !theirs.empty()) {
    const auto our_line = ours.substr(0, ours.find('\n'));
    const auto their_line = theirs.substr(0, theirs.find('\n'));
    if (our_line != their_line) {
      return {std::string(our_line), std::string(their_line)};
    }
    ours.remove_prefix(std::min(ours.size(), our_line.size() + 1));
    theirs.remove_prefix(std::min(theirs.size(), their_line.size() + 1));
  }
  return {};
}

/// Rank 0's judgement of everyone's fields; empty when all agree.
std::string judge(c10d::Store& store, const Handshake& handshake) {
  const std::string ours = encode(handshake.fields);
  std::vector<int> different;
  std::pair<std::string, std::string> example;
  for (int rank = 1; rank < handshake.world_size; ++rank) {
    const std::string theirs = read_text(store, hello_key(rank));
    if (theirs == ours) {
      continue;
    }
    if (different.empty()) {
      example = first_difference(ours, theirs);
    }
    different.push_back(rank);
  }
  if (different.empty()) {
    return {};
  }
  return fmt::format(
      "rendezvous: rank 0 has {} but rank {} has {} ({} rank(s) differ: {}); start every rank with the "
      "same program and configuration",
      example.first, different.front(), example.second, different.size(), format_rank_list(different));
}

}  // namespace

c10::intrusive_ptr<c10d::Store> connect_store(const RankEnvironment& ranks, std::chrono::milliseconds timeout) {
  try {
    auto store = ranks.store_fd ? open_store_file(ranks) : open_tcp_store(ranks, timeout);
    store->setTimeout(timeout);
    // An elastic launcher's store outlives a failed attempt: its keys must not be taken for this one's.
    return c10::make_intrusive<c10d::PrefixStore>(fmt::format("tessera/{}", ranks.restart_count), std::move(store));
  } catch (const c10::Error& error) {
    throw RendezvousError(fmt::format("rendezvous (rank {} of {}) on {}:{}: {}", ranks.rank, ranks.world_size,
                                      ranks.master_address, ranks.master_port, error.what_without_backtrace()));
  }
}

void shake_hands(c10d::Store& store, const Handshake& handshake) {
  try {
    const auto deadline = Clock::now() + handshake.timeout;
    const std::string verdict_key = "verdict";
    store.set(hello_key(handshake.rank), to_bytes(encode(handshake.fields)));
    if (handshake.on_arrival) {
      handshake.on_arrival();
    }
    wait_for_everyone(store, handshake, deadline);
    // One byte in front, since stores do not tell an empty value from none.
    if (handshake.rank == 0) {
      store.set(verdict_key, to_bytes(fmt::format("={}", judge(store, handshake))));
    }
    const bool judged = wait_until([&] { return store.check({verdict_key}); }, deadline + handshake.timeout);
    check<RendezvousError>(judged, "rendezvous: rank 0 of {} came but did not answer within {:g} s; see what it does",
                           handshake.world_size, seconds(handshake.timeout));
    const std::string verdict = read_text(store, verdict_key).substr(1);
    check<MismatchError>(verdict.empty(), "{}", verdict);
  } catch (const c10::Error& error) {
    throw RendezvousError(fmt::format("rendezvous (rank {} of {}): {}; see whether rank 0 is still there",
                                      handshake.rank, handshake.world_size, error.what_without_backtrace()));
  }
}

}  // namespace tessera::launcher::detail
