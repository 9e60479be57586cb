// SPDX-License-Identifier: Apache-2.0
// Ranks as threads: they meet, and the first failure wakes everyone and is the one that is thrown.
#include "tessera/launch/threads.h"

#include <ATen/Parallel.h>
#include <ATen/ops/ones.h>
#include <c10/core/AutogradState.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <numeric>
#include <thread>

#include "tessera/base/error.h"

namespace tessera {
namespace {

using WorldPtr = std::shared_ptr<comm::World>;

comm::Communicator everyone(const WorldPtr& world) {
  std::vector<int> members(static_cast<std::size_t>(world->size()));
  std::iota(members.begin(), members.end(), 0);
  return world->group(members, "all");
}

template <class E>
std::string message_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const E& error) {
    return error.what();
  }
  return "nothing was thrown";
}

TEST(RunThreads, EveryRankTakesPartOn4Ranks) {
  std::atomic<int> ranks_seen{0};
  run_threads(4, {}, [&](const WorldPtr& world) {
    auto tensor = at::ones({4});
    everyone(world).all_reduce(tensor);
    EXPECT_TRUE(tensor.equal(at::ones({4}).mul_(4)));
    EXPECT_EQ(world->size(), 4);
    ranks_seen += 1 << world->rank();
  });
  EXPECT_EQ(ranks_seen, 15);
}

TEST(RunThreads, OperatorsUseOneThreadAndBackwardStaysInTheRanksThread) {
  const int before = at::get_num_threads();
  run_threads(2, {}, [](const WorldPtr&) {
    EXPECT_EQ(at::get_num_threads(), 1);
    EXPECT_FALSE(c10::AutogradState::get_tls_state().get_multithreading_enabled());
  });
  EXPECT_EQ(at::get_num_threads(), before);
  EXPECT_TRUE(c10::AutogradState::get_tls_state().get_multithreading_enabled());
}

TEST(RunThreads, AFailureWakesRanksThatWaitInACollectiveOn4Ranks) {
  std::atomic<int> woken{0};
  const auto message = message_of<FileError>([&] {
    run_threads(4, {}, [&](const WorldPtr& world) {
      const auto group = everyone(world);
      if (world->rank() == 2) {
        throw FileError("no such file");
      }
      try {
        group.barrier();
      } catch (const CommunicationError&) {
        ++woken;
        throw;
      }
    });
  });
  EXPECT_EQ(message, "rank 2 of 4: no such file");
  EXPECT_EQ(woken, 3);
}

TEST(RunThreads, AFailureBeforeTheFirstGroupWakesRanksThatMakeItOn3Ranks) {
  const auto message = message_of<ConfigError>([] {
    run_threads(3, {}, [](const WorldPtr& world) {
      check<ConfigError>(world->rank() != 1, "bad flag");
      (void)everyone(world);
    });
  });
  EXPECT_EQ(message, "rank 1 of 3: bad flag");
}

ThreadOptions with_timeout(std::chrono::milliseconds timeout) {
  ThreadOptions options;
  options.world.timeout = timeout;
  return options;
}

TEST(RunThreads, ARankThatEndsTakesPartInWhatItPostedOn3Ranks) {
  run_threads(3, with_timeout(std::chrono::seconds(20)), [](const WorldPtr& world) {
    const comm::Communicator all = everyone(world);
    if (world->rank() > 0) std::this_thread::sleep_for(std::chrono::milliseconds(30 * world->rank()));
    const at::Tensor tensor = at::ones({4});
    comm::Pending pending = all.all_reduce_coalesced({tensor});
    if (world->rank() == 0) return;
    pending.wait();
    EXPECT_TRUE(tensor.equal(at::ones({4}).mul_(3)));
  });
}

TEST(RunThreads, ARankThatEndsDoesNotWaitForOneThatHasEndedOn2Ranks) {
  const auto start = std::chrono::steady_clock::now();
  run_threads(2, with_timeout(std::chrono::minutes(2)), [](const WorldPtr& world) {
    const comm::Communicator all = everyone(world);
    if (world->rank() == 0) (void)all.all_reduce_coalesced({at::ones({4})});
  });
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::minutes(1));
}

TEST(RunThreads, ARankThatEndsDoesNotWaitForOneThatFailedOn2Ranks) {
  const auto message = message_of<ConfigError>([] {
    run_threads(2, with_timeout(std::chrono::minutes(2)), [](const WorldPtr& world) {
      const comm::Communicator all = everyone(world);
      if (world->rank() == 0) (void)all.all_reduce_coalesced({at::ones({4})});
      std::this_thread::sleep_for(std::chrono::milliseconds(30 * world->rank()));
      check<ConfigError>(world->rank() != 1, "bad flag");
    });
  });
  EXPECT_EQ(message, "rank 1 of 2: bad flag");
}

TEST(RunThreads, ExceptionsOfOthersBecomeErrorsWithoutStackTrace) {
  EXPECT_EQ(message_of<Error>([] { run_threads(1, {}, [](const WorldPtr&) { throw std::logic_error("odd"); }); }),
            "rank 0 of 1: odd");
  const auto torch =
      message_of<Error>([] { run_threads(1, {}, [](const WorldPtr&) { at::ones({2}).add_(at::ones({3})); }); });
  EXPECT_EQ(torch.find("rank 0 of 1: "), 0U) << torch;
  EXPECT_EQ(torch.find("frame #"), std::string::npos) << torch;
}

TEST(RunThreads, RefusesNoRanksAndNoThreads) {
  EXPECT_THROW(run_threads(0, {}, [](const WorldPtr&) {}), ConfigError);
  EXPECT_THROW(run_threads(2, {.threads_per_rank = 0}, [](const WorldPtr&) {}), ConfigError);
}

}  // namespace
}  // namespace tessera
