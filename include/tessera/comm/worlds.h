// SPDX-License-Identifier: Apache-2.0
// Makers of worlds: one rank, ranks as threads of this process, ranks as processes.
#pragma once

#include <c10/core/Device.h>
#include <c10/util/intrusive_ptr.h>

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tessera/comm/world.h"

namespace c10d {
class Backend;
class Store;
}  // namespace c10d

namespace tessera::comm {

/// What a maker of backends gets to know about a group of two or more ranks.
struct GroupRequest {
  /// Position of this rank in `members`.
  int rank = 0;
  /// Global ranks, ascending.
  std::vector<int> members;
  std::string name;
  std::chrono::milliseconds timeout{};
  c10::Device device = c10::kCPU;
  /// Process worlds: a store of this group's own. Null in thread worlds.
  c10::intrusive_ptr<c10d::Store> store;
  /// Thread worlds: the group's backend for host memory, over which ranks can meet and exchange addresses. Null in
  /// process worlds.
  c10::intrusive_ptr<c10d::Backend> host;
};

/// Returns this rank's end of the group. Every member's maker is called, each in its own thread or process.
using BackendMaker = std::function<c10::intrusive_ptr<c10d::Backend>(const GroupRequest&)>;

struct WorldOptions {
  /// How long a rank waits for its peers, in every collective and while groups are made.
  std::chrono::milliseconds timeout = std::chrono::minutes(10);
  /// Where tensors live; in thread worlds "cuda" without an index spreads the ranks over the GPUs.
  c10::Device device = c10::kCPU;
  /// gloo: address of the network interface, a name or a number.
  std::string address = "127.0.0.1";
  /// Ranks on this machine, for choosing how long waiting ranks keep their core. 0: all ranks.
  int ranks_on_machine = 0;
  /// Transports from elsewhere by name: process worlds take "nccl" from here; thread worlds whose device is not the
  /// CPU take "thread". load_cuda_makers() has both.
  std::map<std::string, BackendMaker> makers = {};
};

/// The world of one rank: every group has one member and nothing is communicated.
[[nodiscard]] std::shared_ptr<World> make_single_world(c10::Device device = c10::kCPU);

/// `size` ranks of this process; element r is for the thread that plays rank r. Peers' memory is read in place.
/// Throws  ConfigError when size is not in 1..2047, or when the device is not the CPU and no maker "thread" is given
[[nodiscard]] std::vector<std::shared_ptr<World>> make_thread_worlds(int size, const WorldOptions& options = {});

/// This process as rank `rank` of `size`. Transports:
///   "shm"   processes of one machine, through shared memory without a name: nothing stays behind, whatever happens
///   "gloo"  any machines, over TCP
///   others  through options.makers
/// Throws  ConfigError for an unknown transport (naming the known ones), a rank outside the world, or gloo in a build
///         without it; CommunicationError when peers do not come
[[nodiscard]] std::shared_ptr<World> make_process_world(int rank, int size, int local_rank,
                                                        c10::intrusive_ptr<c10d::Store> store,
                                                        const std::string& transport, const WorldOptions& options = {});

}  // namespace tessera::comm
