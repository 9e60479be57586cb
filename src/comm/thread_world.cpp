// SPDX-License-Identifier: Apache-2.0
// Ranks as threads of one process, and the hub where their groups meet.
#include <fmt/format.h>

#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <utility>

#include "comm/devices.h"
#include "comm/group_book.h"
#include "comm/local_backend.h"
#include "comm/vector_math.h"
#include "tessera/base/error.h"
#include "tessera/comm/worlds.h"

namespace tessera::comm {

namespace {

constexpr detail::RegionShape kShape{.size = 0, .chunk_bytes = 256 * 1024, .ring_bytes = 32 * 1024};

// Hands the same region to all members of a group. Any thread.
class Hub {
 public:
  detail::Region join(int rank, const std::vector<int>& members, const std::string& name) {
    const std::lock_guard lock(mutex_);
    Entry& entry = entries_[detail::group_key(members, name)];
    check<ConfigError>(!entry.joined.contains(rank),
                       "group {}: rank {} makes it twice; a name is used once per job for the same members", name,
                       rank);
    if (entry.joined.empty()) entry = open(members);
    entry.joined.insert(rank);
    detail::Region region = *entry.region;
    // From now on the members keep it; the hub only remembers it, for a rank that fails after it let go of its own.
    if (entry.joined.size() == members.size()) {
      entry.complete = detail::WeakRegion(region);
      entry.region.reset();
    }
    return region;
  }

  void leave(int rank) noexcept {
    const std::lock_guard lock(mutex_);
    left_.insert(rank);
  }
  bool has_left(int rank) const {
    const std::lock_guard lock(mutex_);
    return left_.contains(rank);
  }

  // Poisons the groups of `rank`: those that it has left, those in which it is still missing and those yet to be made.
  void abort(int rank, const std::string& reason) noexcept {
    const std::lock_guard lock(mutex_);
    aborted_.emplace(rank, reason);
    for (const auto& [key, entry] : entries_) {
      const auto region = entry.region ? entry.region : entry.complete.lock();
      if (region && entry.members.contains(rank)) detail::poison(*region, reason);
    }
  }

 private:
  struct Entry {
    std::optional<detail::Region> region;
    detail::WeakRegion complete;
    std::set<int> members;
    std::set<int> joined;
  };

  Entry open(const std::vector<int>& members) const {
    detail::RegionShape shape = kShape;
    shape.size = static_cast<int>(members.size());
    Entry entry{detail::make_private_region(shape), {}, {members.begin(), members.end()}, {}};
    for (const auto& [rank, reason] : aborted_) {
      if (entry.members.contains(rank)) detail::poison(*entry.region, reason);
    }
    return entry;
  }

  mutable std::mutex mutex_;
  std::map<std::string, Entry> entries_;
  std::map<int, std::string> aborted_;
  std::set<int> left_;
};

class ThreadWorld final : public World {
 public:
  ThreadWorld(int rank, int size, std::shared_ptr<Hub> hub, const WorldOptions& options)
      : World(rank, size, rank, detail::device_of_rank(options.device, rank, /*shared=*/true)),
        hub_(std::move(hub)),
        options_(options),
        engine_(std::make_shared<detail::Engine>()) {}
  // On any thread and after any end, so it cannot meet peers: leave() did.
  ~ThreadWorld() override { engine_->discard(); }

  std::string transport() const override { return "thread"; }

  Communicator group(const std::vector<int>& members, const std::string& name) override {
    const int position = detail::position_in_group(rank(), size(), members, name);
    if (members.size() == 1) return Communicator(nullptr, name);
    detail::Region region = hub_->join(rank(), members, name);
    book_.add(region);
    auto host = c10::make_intrusive<detail::LocalBackend>(detail::LocalGroup{
        .region = std::move(region),
        .reach = detail::Reach::kDirect,
        .rank = position,
        .transport = "thread",
        .arrival = {.group = name,
                    .timeout = options_.timeout,
                    .patience =
                        detail::choose_patience(options_.ranks_on_machine > 0 ? options_.ranks_on_machine : size()),
                    .is_alive = [hub = hub_, members](
                                    int peer) { return !hub->has_left(members[static_cast<std::size_t>(peer)]); }},
        .engine = engine_});
    host->meet();
    if (device().is_cpu()) return Communicator(std::move(host), name);
    auto backend = options_.makers.at("thread")({.rank = position,
                                                 .members = members,
                                                 .name = name,
                                                 .timeout = options_.timeout,
                                                 .device = device(),
                                                 .store = {},
                                                 .host = host});
    return Communicator(std::move(backend), name);
  }

  void leave() noexcept override {
    engine_->finish();
    hub_->leave(rank());
  }

  void abort(const std::string& reason) noexcept override {
    const std::string text = fmt::format("rank {} failed: {}", rank(), reason);
    book_.abort(text);
    hub_->abort(rank(), text);
  }

 private:
  std::shared_ptr<Hub> hub_;
  WorldOptions options_;
  std::shared_ptr<detail::Engine> engine_;
  detail::GroupBook book_;
};

}  // namespace

std::vector<std::shared_ptr<World>> make_thread_worlds(int size, const WorldOptions& options) {
  detail::check_world("make_thread_worlds", 0, size);
  check<ConfigError>(options.device.is_cpu() || options.makers.contains("thread"),
                     "make_thread_worlds: device {} needs a maker \"thread\" for its memory; give one or use the CPU",
                     options.device.str());
  detail::settle_vector_math();
  auto hub = std::make_shared<Hub>();
  std::vector<std::shared_ptr<World>> worlds;
  for (int rank = 0; rank < size; ++rank) {
    worlds.push_back(std::make_shared<ThreadWorld>(rank, size, hub, options));
  }
  return worlds;
}

}  // namespace tessera::comm
