// SPDX-License-Identifier: Apache-2.0
// Making worlds and groups: what is refused, and the seams for transports from elsewhere.
#include "tessera/comm/worlds.h"

#include <ATen/ops/ones.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include "comm/ranks.h"
#include "tessera/base/error.h"

namespace tessera::comm::testing {

namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

template <class Call>
std::string message_of(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(SingleWorld, HasOneRankAndGroupsOfOne) {
  const auto world = make_single_world();
  EXPECT_EQ(world->size(), 1);
  EXPECT_EQ(world->transport(), "single");
  EXPECT_EQ(world->group({0}, "dp").size(), 1);
  EXPECT_EQ(world->group({0}, "dp").name(), "dp");
  EXPECT_THROW(static_cast<void>(world->group({0, 1}, "tp")), ConfigError);
}

TEST(ThreadWorlds, NumberTheirRanks) {
  const auto worlds = make_thread_worlds(3);
  ASSERT_EQ(worlds.size(), 3U);
  for (int rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(worlds[static_cast<std::size_t>(rank)]->rank(), rank);
    EXPECT_EQ(worlds[static_cast<std::size_t>(rank)]->local_rank(), rank);
    EXPECT_EQ(worlds[static_cast<std::size_t>(rank)]->size(), 3);
  }
}

TEST(ThreadWorlds, RefuseGroupsThatAreNotAscendingRanksWithTheCaller) {
  const auto world = make_thread_worlds(3)[0];
  for (const std::vector<int>& members : {std::vector<int>{}, {0, 0}, {1, 0}, {0, 3}, {-1, 0}}) {
    EXPECT_THROW(static_cast<void>(world->group(members, "g")), ConfigError);
  }
  EXPECT_THAT(message_of([&] {
                static_cast<void>(world->group({1, 2}, "g"));
              }),
              HasSubstr("rank 0 asks for it but is not one of its members [1, 2]"));
}

TEST(ThreadWorlds, RefuseAGroupMadeTwice) {
  const auto errors = errors_of_ranks("thread", 2, [](World& world) {
    static_cast<void>(world.group({0, 1}, "tp"));
    static_cast<void>(world.group({0, 1}, "other"));
    static_cast<void>(world.group({0, 1}, "tp"));
  });
  for (const std::string& error : errors) EXPECT_THAT(error, HasSubstr("makes it twice"));
}

TEST(ThreadWorlds, GiveOtherDevicesTheirOwnBackendOverTheHostGroup) {
  EXPECT_THROW(static_cast<void>(make_thread_worlds(2, {.device = c10::Device(c10::kMeta)})), ConfigError);
  WorldOptions options = patient();
  options.device = c10::Device(c10::kMeta);
  options.makers["thread"] = [](const GroupRequest& request) {
    EXPECT_THAT(request.members, ElementsAre(0, 1));
    EXPECT_TRUE(request.device.is_meta());
    EXPECT_EQ(request.host->getRank(), request.rank);
    return request.host;
  };
  const auto errors = errors_of_ranks(
      "thread", 2,
      [](World& world) {
        at::Tensor tensor = at::ones({2});
        world.group({0, 1}, "tp").all_reduce(tensor);
        EXPECT_EQ(tensor[1].item<float>(), 2.0F);
      },
      options);
  EXPECT_THAT(errors, ElementsAre("", ""));
}

TEST(ProcessWorld, TakesTransportsFromItsOptions) {
  WorldOptions options;
  int made = 0;
  options.makers["nccl"] = [&](const GroupRequest& request) -> c10::intrusive_ptr<c10d::Backend> {
    ++made;
    EXPECT_NE(request.store, nullptr);
    EXPECT_EQ(request.name, "tp");
    throw ConfigError("no GPU");
  };
  const auto world = make_process_world(0, 2, 0, c10::make_intrusive<c10d::HashStore>(), "nccl", options);
  EXPECT_EQ(world->transport(), "nccl");
  EXPECT_EQ(message_of([&] { static_cast<void>(world->group({0, 1}, "tp")); }), "no GPU");
  EXPECT_EQ(made, 1);
}

TEST(ProcessWorld, RefusesUnknownTransportsAndRanks) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  EXPECT_THAT(message_of([&] { static_cast<void>(make_process_world(0, 2, 0, store, "smoke")); }),
              HasSubstr("transport smoke is not known here; allowed are shm, gloo"));
  EXPECT_THROW(static_cast<void>(make_process_world(2, 2, 0, store, "shm")), ConfigError);
  EXPECT_THROW(static_cast<void>(make_thread_worlds(0)), ConfigError);
}

}  // namespace

}  // namespace tessera::comm::testing
