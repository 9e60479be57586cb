// SPDX-License-Identifier: Apache-2.0
// MKL detects its CPU before ranks compute: the detection is watched by standing in front of it.
#include <ATen/ops/log.h>
#include <ATen/ops/ones.h>
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "tessera/comm/worlds.h"

namespace {

std::atomic<int> detections{0};

int (*real_detection())() {
  return reinterpret_cast<int (*)()>(dlsym(RTLD_NEXT, "mkl_serv_vml_cpu_detect"));
}

}  // namespace

/// LibTorch's calls of the function of this name end here, as those of any shared library do.
extern "C" __attribute__((visibility("default"))) int mkl_serv_vml_cpu_detect() {
  ++detections;
  return real_detection()();
}

namespace tessera::comm::testing {

TEST(VectorMath, IsSettledBeforeRanksThatAreThreadsCompute) {
  if (real_detection() == nullptr) GTEST_SKIP() << "this LibTorch has no MKL inside";
  const auto worlds = make_thread_worlds(2);
  const int before = detections;
  std::thread([] { static_cast<void>(at::log(at::ones({8}, at::kFloat))); }).join();
  if (detections == 0) GTEST_SKIP() << "this LibTorch computes log without MKL";
  EXPECT_EQ(detections, before);
}

}  // namespace tessera::comm::testing
