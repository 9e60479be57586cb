// SPDX-License-Identifier: Apache-2.0
// Ranks as threads on GPUs for tests, which are skipped where there is none.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <numeric>
#include <vector>

#include "comm/cuda_plugin_entry.h"
#include "tessera/comm/cuda_plugin.h"
#include "tessera/launch/threads.h"

namespace tessera::test {

/// A fixture whose tests need a GPU. A plug-in that does not load where there is one fails them.
template <class Base>
class OnGpu : public Base {
 protected:
  void SetUp() override {
    if (comm::detail::count_gpus() == 0) GTEST_SKIP() << "no GPU here: compiled and linked, not run";
    makers_ = comm::load_cuda_makers();
  }

  /// Plays `size` ranks on `device` ("cuda": spread over the GPUs) with a group of all of them. Throws the first failure.
  void run(int size, const std::function<void(comm::Communicator&, c10::Device)>& body,
           c10::Device device = c10::Device("cuda:0")) const {
    ThreadOptions options;
    options.world.timeout = std::chrono::seconds(60);
    options.world.device = device;
    options.world.makers = makers_;
    run_threads(size, options, [&](const std::shared_ptr<comm::World>& world) {
      std::vector<int> everyone(static_cast<std::size_t>(size));
      std::iota(everyone.begin(), everyone.end(), 0);
      comm::Communicator all = world->group(everyone, "all");
      body(all, world->device());
    });
  }

 private:
  std::map<std::string, comm::BackendMaker> makers_;
};

}  // namespace tessera::test
