// SPDX-License-Identifier: Apache-2.0
// Runs a test body on several ranks, as threads of the test: each with its own world and mesh. Their device is the CPU,
// or what the variable TESSERA_TEST_DEVICE names.
#pragma once

#include <gtest/gtest.h>

#include <ATen/Parallel.h>
#include <c10/core/AutogradState.h>

#include <cstdlib>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "comm/cuda_plugin_entry.h"
#include "comm/devices.h"
#include "tessera/comm/cuda_plugin.h"
#include "tessera/comm/worlds.h"
#include "tessera/mesh/mesh.h"

namespace tessera::test {

inline c10::Device device_of_ranks() {
  const char* name = std::getenv("TESSERA_TEST_DEVICE");
  return c10::Device(name == nullptr ? "cpu" : name);
}

inline bool has_device_of_ranks() { return device_of_ranks().is_cpu() || comm::detail::count_gpus() > 0; }

/// Loaded before any test runs: LibTorch remembers it when it is asked about CUDA and there is none.
inline const std::map<std::string, comm::BackendMaker> kMakers =
    device_of_ranks().is_cuda() && has_device_of_ranks() ? comm::load_cuda_makers()
                                                         : std::map<std::string, comm::BackendMaker>{};

/// Calls `body` with the world of each of `size` ranks; the first exception fails the test, naming its rank.
inline void on_ranks(int size, const std::function<void(const std::shared_ptr<comm::World>&)>& body) {
  comm::WorldOptions options;
  options.timeout = std::chrono::seconds(30);
  options.device = device_of_ranks();
  options.makers = kMakers;
  const auto worlds = comm::make_thread_worlds(size, options);
  comm::detail::finish_device(options.device);
  std::mutex mutex;
  std::string failure;
  std::vector<std::thread> threads;
  for (const auto& world : worlds) {
    threads.emplace_back([&, world] {
      at::set_num_threads(1);
      c10::AutogradState::get_tls_state().set_multithreading_enabled(false);
      try {
        const comm::detail::RankThread on_device(world->device());
        body(world);
        world->leave();
      } catch (const std::exception& error) {
        const std::lock_guard lock(mutex);
        if (failure.empty()) failure = "rank " + std::to_string(world->rank()) + ": " + std::string(error.what()).substr(0, 400);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failure, "");
}

/// The same with a mesh of `axes`, for instance "dp=2,tp=2".
inline void on_mesh(const std::string& axes, const std::function<void(const Mesh&)>& body, MeshOptions options = {}) {
  int size = 1;
  for (const Axis& axis : parse_axes(axes)) size *= axis.size;
  on_ranks(size, [&](const auto& world) { body(Mesh(world, parse_axes(axes), options)); });
}

}  // namespace tessera::test
