// SPDX-License-Identifier: Apache-2.0
// Devices of ranks, as far as that can be told without a GPU.
#include "comm/devices.h"

#include <ATen/ops/ones.h>
#include <gtest/gtest.h>

#include "tessera/base/error.h"

namespace tessera::comm::detail {

namespace {

TEST(Devices, TheCpuAndAGivenIndexStayAsTheyAre) {
  EXPECT_EQ(device_of_rank(c10::kCPU, 3, /*shared=*/true), c10::Device(c10::kCPU));
  EXPECT_EQ(device_of_rank(c10::kCPU, 3, /*shared=*/false), c10::Device(c10::kCPU));
  EXPECT_EQ(device_of_rank(c10::Device("cuda:1"), 3, /*shared=*/false), c10::Device("cuda:1"));
}

TEST(Devices, RefusesADeviceWhoseSupportIsNotLoaded) {
  EXPECT_THROW(static_cast<void>(device_of_rank(c10::Device("cuda"), 0, /*shared=*/true)), ConfigError);
  EXPECT_THROW(use_device(c10::Device("cuda:0")), ConfigError);
}

TEST(Devices, ARankOnTheCpuNeedsNoPreparation) {
  const RankThread rank(c10::kCPU);
  finish_device(c10::kCPU);
  EXPECT_TRUE(at::ones({2}).device().is_cpu());
}

}  // namespace

}  // namespace tessera::comm::detail
