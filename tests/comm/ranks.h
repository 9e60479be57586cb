// SPDX-License-Identifier: Apache-2.0
// Plays all ranks of a job as threads, over any transport, and collects what each of them threw.
#pragma once

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include <chrono>
#include <functional>
#include <memory>
#include <numeric>
#include <ostream>
#include <string>
#include <thread>
#include <vector>

#include "tessera/comm/worlds.h"

namespace tessera::comm::testing {

inline std::vector<int> everyone(int size) {
  std::vector<int> ranks(static_cast<std::size_t>(size));
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

inline WorldOptions patient() {
  WorldOptions options;
  options.timeout = std::chrono::seconds(20);
  return options;
}

/// The message that each rank's body threw; empty where it returned. A rank that throws aborts its world.
inline std::vector<std::string> errors_of_ranks(const std::string& transport, int size,
                                                const std::function<void(World&)>& body,
                                                const WorldOptions& options = patient()) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  std::vector<std::shared_ptr<World>> threads;
  if (transport == "thread") threads = make_thread_worlds(size, options);
  std::vector<std::string> errors(static_cast<std::size_t>(size));
  const auto play = [&](int rank) {
    at::set_num_threads(1);
    const auto index = static_cast<std::size_t>(rank);
    std::shared_ptr<World> world;
    try {
      world = transport == "thread" ? threads[index] : make_process_world(rank, size, rank, store, transport, options);
      body(*world);
    } catch (const std::exception& error) {
      errors[index] = error.what();
      if (world) world->abort(error.what());
    }
  };
  std::vector<std::jthread> players;
  for (int rank = 0; rank < size; ++rank) players.emplace_back(play, rank);
  players.clear();
  return errors;
}

inline void run_ranks(const std::string& transport, int size, const std::function<void(World&)>& body) {
  const std::vector<std::string> errors = errors_of_ranks(transport, size, body);
  for (std::size_t rank = 0; rank < errors.size(); ++rank) EXPECT_EQ(errors[rank], "") << "rank " << rank;
}

struct Job {
  std::string transport;
  int size = 1;
};

inline void PrintTo(const Job& job, std::ostream* out) { *out << job.transport << " on " << job.size << " ranks"; }

inline std::string job_name(const ::testing::TestParamInfo<Job>& info) {
  return info.param.transport + "On" + std::to_string(info.param.size) + "Ranks";
}

/// A suite whose tests run once per job.
class EveryTransport : public ::testing::TestWithParam<Job> {
 protected:
  void run(const std::function<void(Communicator&)>& body) {
    run_ranks(GetParam().transport, GetParam().size, [&](World& world) {
      Communicator all = world.group(everyone(world.size()), "all");
      body(all);
    });
  }
  [[nodiscard]] int size() const { return GetParam().size; }
  [[nodiscard]] bool is_ours() const { return GetParam().transport != "gloo"; }
};

/// thread, shm and, where the build has it, gloo.
std::vector<Job> every_job();
std::vector<Job> our_jobs();

}  // namespace tessera::comm::testing
