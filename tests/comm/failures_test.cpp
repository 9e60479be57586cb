// SPDX-License-Identifier: Apache-2.0
// What ranks see when a peer disagrees, is late, or fails: an error that names it, never a hang.
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include "comm/ranks.h"
#include "tessera/base/error.h"

namespace tessera::comm::testing {

namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;

WorldOptions hasty() {
  WorldOptions options;
  options.timeout = std::chrono::milliseconds(300);
  return options;
}

// Runs `body(all, rank)` and returns each rank's message.
std::vector<std::string> errors_in_group(const std::string& transport, int size, const WorldOptions& options,
                                         const std::function<void(Communicator&)>& body) {
  return errors_of_ranks(
      transport, size,
      [&](World& world) {
        Communicator all = world.group(everyone(size), "tp");
        body(all);
      },
      options);
}

class Failures : public ::testing::TestWithParam<const char*> {};

TEST_P(Failures, MismatchNamesBothCallsOnEveryRank) {
  const auto errors = errors_in_group(GetParam(), 3, patient(), [](Communicator& all) {
    at::Tensor tensor = at::zeros({4096});
    all.all_reduce(tensor);
    if (all.rank() == 1) {
      static_cast<void>(all.all_gather(at::zeros({1024})));
    } else {
      all.all_reduce(tensor);
    }
  });
  EXPECT_THAT(errors, Each(HasSubstr("rank 1 called all_gather(4096 bytes, float32) where rank 0 called "
                                     "all_reduce(16384 bytes, float32, sum), call 3 of group tp")));
}

TEST_P(Failures, OtherSizesDtypesReductionsAndRootsAreMismatches) {
  const std::function<void(Communicator&)> disagreements[] = {
      [](Communicator& all) {
        at::Tensor tensor = at::zeros({8 + all.rank()});
        all.all_reduce(tensor);
      },
      [](Communicator& all) {
        at::Tensor tensor = at::zeros({8}, all.rank() == 0 ? at::kFloat : at::kInt);
        all.all_reduce(tensor);
      },
      [](Communicator& all) {
        at::Tensor tensor = at::zeros({8});
        all.all_reduce(tensor, all.rank() == 0 ? ReduceOp::kSum : ReduceOp::kMax);
      },
      [](Communicator& all) {
        at::Tensor tensor = at::zeros({8});
        all.broadcast(tensor, all.rank());
      },
      [](Communicator& all) {
        at::Tensor tensor = at::zeros({8 * all.rank()});
        all.all_reduce(tensor);
      }};
  for (const auto& disagreement : disagreements) {
    EXPECT_THAT(errors_in_group(GetParam(), 2, patient(), disagreement), Each(HasSubstr("rank 1 called")));
  }
}

TEST_P(Failures, TimeoutNamesTheRankThatDidNotArrive) {
  const auto errors = errors_in_group(GetParam(), 3, hasty(), [](Communicator& all) {
    if (all.rank() == 2) return;
    at::Tensor tensor = at::zeros({4});
    all.all_reduce(tensor);
  });
  for (const int rank : {0, 1}) {
    EXPECT_THAT(errors[static_cast<std::size_t>(rank)],
                AllOf(HasSubstr("all_reduce(16 bytes, float32, sum), call 2 of group tp"),
                      HasSubstr("rank 2 of 3 did not arrive within 300 ms")));
  }
  EXPECT_EQ(errors[2], "");
}

TEST_P(Failures, MissingMessageNamesPeerAndTag) {
  const auto errors = errors_in_group(GetParam(), 2, hasty(), [](Communicator& all) {
    if (all.rank() == 1) return;
    at::Tensor tensor = at::zeros({4});
    all.receive(tensor, 1, 5);
  });
  EXPECT_THAT(errors[0], AllOf(HasSubstr("receive(16 bytes, float32, tag 5) between rank 0 and rank 1 in group tp"),
                               HasSubstr("within 300 ms")));
}

TEST_P(Failures, AbortWakesPeersWithItsReason) {
  const auto errors = errors_in_group(GetParam(), 4, patient(), [](Communicator& all) {
    if (all.rank() == 3) throw ConfigError("batch.size is 0");
    all.barrier();
  });
  for (const int rank : {0, 1, 2}) {
    EXPECT_THAT(errors[static_cast<std::size_t>(rank)], HasSubstr("rank 3 failed: batch.size is 0"));
  }
}

TEST_P(Failures, AbortReachesPeersAcrossGroups) {
  // Rank 2 shares a group with rank 1 only; rank 0 hears of its failure through rank 1.
  const auto errors = errors_of_ranks(GetParam(), 3, [](World& world) {
    const auto pair = [&](int first) { return world.group({first, first + 1}, "pair" + std::to_string(first)); };
    if (world.rank() == 0) pair(0).barrier();
    if (world.rank() == 1) {
      const Communicator left = pair(0);
      const Communicator right = pair(1);
      right.barrier();
      left.barrier();
    }
    if (world.rank() == 2) {
      static_cast<void>(pair(1));
      throw FileError("data is gone");
    }
  });
  EXPECT_THAT(errors, Each(HasSubstr("data is gone")));
}

TEST_P(Failures, PoisonedGroupStaysPoisoned) {
  const auto errors = errors_in_group(GetParam(), 2, patient(), [](Communicator& all) {
    all.barrier();
    if (all.rank() == 0) all.backend()->abort();
    EXPECT_THROW(all.barrier(), CommunicationError);
    EXPECT_THROW(all.barrier(), CommunicationError);
    at::Tensor tensor = at::zeros({1});
    all.all_reduce(tensor);
  });
  EXPECT_THAT(errors, Each(HasSubstr("group tp: aborted by rank 0")));
}

TEST_P(Failures, AsynchronousMismatchIsThrownByWait) {
  const auto errors = errors_in_group(GetParam(), 2, patient(), [](Communicator& all) {
    Pending pending = all.all_reduce_coalesced({at::zeros({4 + all.rank()})});
    pending.wait();
  });
  EXPECT_THAT(errors, Each(HasSubstr("rank 1 called all_reduce_coalesced(20 bytes")));
}

TEST_P(Failures, UnequalSharesOfAllToAllAreNamed) {
  const auto errors = errors_in_group(GetParam(), 2, patient(), [](Communicator& all) {
    const std::vector<std::int64_t> send{1, 2};
    const std::vector<std::int64_t> receive =
        all.rank() == 0 ? std::vector<std::int64_t>{1, 1} : std::vector<std::int64_t>{3, 2};
    static_cast<void>(all.all_to_all(at::zeros({3}), send, receive));
    all.barrier();
  });
  EXPECT_THAT(errors, Each(HasSubstr("rank 0 sends 8 bytes to rank 1, which expects 12")));
}

TEST_P(Failures, MessageOfAnotherSizeIsAnError) {
  const auto errors = errors_in_group(GetParam(), 2, patient(), [](Communicator& all) {
    at::Tensor tensor = at::zeros({all.rank() == 0 ? 4 : 6});
    if (all.rank() == 0) {
      all.send(tensor, 1);
    } else {
      all.receive(tensor, 0);
    }
  });
  EXPECT_THAT(errors[1], AllOf(HasSubstr("receive(24 bytes, float32, tag 0) of rank 1 from rank 0 in group tp"),
                               HasSubstr("the message has 16 bytes")));
}

INSTANTIATE_TEST_SUITE_P(Local, Failures, ::testing::Values("thread", "shm"),
                         [](const auto& transport) { return std::string(transport.param); });

TEST(Group, MemberThatNeverComesIsAnErrorAfterTheDeadline) {
  for (const char* transport : {"thread", "shm"}) {
    const auto errors = errors_of_ranks(
        transport, 2,
        [](World& world) {
          if (world.rank() == 0) static_cast<void>(world.group({0, 1}, "dp"));
        },
        hasty());
    EXPECT_THAT(errors[0], AllOf(HasSubstr("group dp"), HasSubstr("rank 1"))) << transport;
  }
}

TEST(Group, RankThatFailedBeforeJoiningIsNamed) {
  const auto errors = errors_of_ranks("thread", 2, [](World& world) {
    if (world.rank() == 1) throw ConfigError("no such file");
    static_cast<void>(world.group({0, 1}, "dp"));
  });
  EXPECT_THAT(errors[0], HasSubstr("rank 1 failed: no such file"));
}

}  // namespace

}  // namespace tessera::comm::testing
