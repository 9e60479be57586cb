// SPDX-License-Identifier: Apache-2.0
// The contract of Communicator for ranks that are threads on one GPU, with answers in closed form.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include "cuda/gpu.h"
#include "tessera/base/error.h"

namespace tessera::test {

namespace {

using comm::Communicator;
using comm::Pending;
using comm::ReduceOp;
using Tensors = std::vector<at::Tensor>;

constexpr at::ScalarType kDtypes[] = {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf,
                                      at::kLong,   at::kInt,   at::kChar,     at::kByte};
// Empty, one element, odd, several blocks of threads, more than one pass of all blocks.
constexpr std::int64_t kCounts[] = {0, 1, 7, 1027, 40'001, 9'000'001};

at::TensorOptions on(c10::Device device, at::ScalarType dtype) { return at::TensorOptions(device).dtype(dtype); }

// 0 1 2 3 4 0 1 2 ...: sums over ranks stay exact in every dtype.
at::Tensor ramp(std::int64_t count, at::ScalarType dtype, c10::Device device = c10::kCPU) {
  return at::arange(count, on(device, at::kLong)).remainder(5).to(dtype);
}

bool same(const at::Tensor& a, const at::Tensor& b) {
  return a.sizes() == b.sizes() && a.scalar_type() == b.scalar_type() && a.cpu().equal(b.cpu());
}

class GpuContract : public OnGpu<::testing::TestWithParam<int>> {
 protected:
  [[nodiscard]] static int size() { return GetParam(); }
  void run(const std::function<void(Communicator&, c10::Device)>& body) const { OnGpu::run(size(), body); }
};

TEST_P(GpuContract, AllReduceSumsEveryDtypeAndSize) {
  run([](Communicator& all, c10::Device gpu) {
    const int ranks = all.size();
    for (const at::ScalarType dtype : kDtypes) {
      for (const std::int64_t count : kCounts) {
        at::Tensor tensor = ramp(count, dtype, gpu) + all.rank();
        all.all_reduce(tensor);
        EXPECT_TRUE(same(tensor, ramp(count, dtype) * ranks + ranks * (ranks - 1) / 2)) << dtype << " x " << count;
      }
    }
  });
}

TEST_P(GpuContract, AllReduceTakesMaximumMinimumProductAndAverage) {
  run([](Communicator& all, c10::Device gpu) {
    const int ranks = all.size();
    for (const at::ScalarType dtype : kDtypes) {
      at::Tensor largest = ramp(1027, dtype, gpu) + all.rank();
      at::Tensor smallest = largest.clone();
      at::Tensor product = at::full({1027}, all.rank() < 3 ? 2 : 1, on(gpu, dtype));
      at::Tensor average = ramp(1027, dtype, gpu) + 2 * all.rank();
      all.all_reduce(largest, ReduceOp::kMax);
      all.all_reduce(smallest, ReduceOp::kMin);
      all.all_reduce(product, ReduceOp::kProduct);
      all.all_reduce(average, ReduceOp::kAvg);
      EXPECT_TRUE(same(largest, ramp(1027, dtype) + (ranks - 1))) << dtype;
      EXPECT_TRUE(same(smallest, ramp(1027, dtype))) << dtype;
      EXPECT_TRUE(same(product, at::full({1027}, 1 << std::min(ranks, 3), dtype))) << dtype;
      EXPECT_TRUE(same(average, ramp(1027, dtype) + (ranks - 1))) << dtype;
    }
  });
}

TEST_P(GpuContract, BoolReducesAsOrAndAnd) {
  run([](Communicator& all, c10::Device gpu) {
    at::Tensor any = at::zeros({9}, on(gpu, at::kBool));
    any[3] = all.rank() == all.size() - 1;
    at::Tensor every = at::full({9}, true, on(gpu, at::kBool));
    every[5] = all.rank() != 0;
    all.all_reduce(any, ReduceOp::kSum);
    all.all_reduce(every, ReduceOp::kProduct);
    EXPECT_TRUE(any.sum().item<std::int64_t>() == 1 && any[3].item<bool>());
    EXPECT_TRUE(every.sum().item<std::int64_t>() == 8 && !every[5].item<bool>());
  });
}

TEST_P(GpuContract, StridedAndMisalignedTensorsAreReducedInPlace) {
  run([](Communicator& all, c10::Device gpu) {
    const int ranks = all.size();
    at::Tensor whole = at::zeros({6, 10}, on(gpu, at::kFloat));
    at::Tensor columns = whole.t().slice(0, 1, 10, 3);
    columns.fill_(all.rank() + 1);
    all.all_reduce(columns);
    EXPECT_TRUE(same(columns, at::full({3, 6}, ranks * (ranks + 1) / 2, at::kFloat)));
    EXPECT_EQ(whole.sum().item<float>(), static_cast<float>(18 * ranks * (ranks + 1) / 2));
    // From the second element on, sixteen bytes at a time are out of the question.
    at::Tensor padded = at::zeros({10'003}, on(gpu, at::kHalf));
    at::Tensor inner = padded.slice(0, 1, 10'002);
    inner.fill_(all.rank() + 1);
    all.all_reduce(inner);
    EXPECT_TRUE(same(inner, at::full({10'001}, ranks * (ranks + 1) / 2, at::kHalf)));
    EXPECT_EQ(padded[0].item<float>() + padded[10'002].item<float>(), 0);
  });
}

TEST_P(GpuContract, CoalescedReductionsMayBeWaitedForInAnyOrder) {
  run([](Communicator& all, c10::Device gpu) {
    const int ranks = all.size();
    std::vector<Tensors> buckets;
    std::vector<Pending> pending;
    for (int bucket = 0; bucket < 3; ++bucket) {
      Tensors tensors;
      for (const std::int64_t count : kCounts) {
        tensors.push_back(at::full({count}, all.rank() + bucket, on(gpu, at::kFloat)));
      }
      buckets.push_back(tensors);
      pending.push_back(all.all_reduce_coalesced(tensors));
    }
    for (int bucket = 2; bucket >= 0; --bucket) {
      const auto index = static_cast<std::size_t>(bucket);
      pending[index].wait();
      const int expected = ranks * (ranks - 1) / 2 + ranks * bucket;
      for (const at::Tensor& tensor : buckets[index]) {
        EXPECT_TRUE(same(tensor, at::full(tensor.sizes(), expected, at::kFloat))) << tensor.numel();
      }
    }
  });
}

TEST_P(GpuContract, AllGatherStacksRowsByRank) {
  run([](Communicator& all, c10::Device gpu) {
    for (const std::int64_t rows : {0, 1, 3, 30'001}) {
      const at::Tensor gathered = all.all_gather(at::full({rows, 3}, all.rank(), on(gpu, at::kInt)));
      const at::Tensor ranks = at::arange(all.size()).to(at::kInt).repeat_interleave(rows);
      EXPECT_TRUE(same(gathered, ranks.unsqueeze(1).expand({-1, 3})));
    }
  });
}

TEST_P(GpuContract, ReduceScatterLeavesEachRankItsRows) {
  run([](Communicator& all, c10::Device gpu) {
    const int ranks = all.size();
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kLong}) {
      for (const std::int64_t rows : {0, 1, 3, 50'001}) {
        const at::Tensor input = at::arange(ranks).repeat_interleave(rows).to(dtype).unsqueeze(1) + all.rank();
        const at::Tensor mine = all.reduce_scatter(input.expand({-1, 2}).to(gpu));
        EXPECT_TRUE(same(mine, at::full({rows, 2}, ranks * all.rank() + ranks * (ranks - 1) / 2, dtype)));
      }
    }
  });
}

TEST_P(GpuContract, AllToAllMovesUnevenAndEmptyShares) {
  run([](Communicator& all, c10::Device gpu) {
    for (const std::int64_t unit : {1, 3, 20'011}) {
      // Rank s sends (s + d) % 3 units of rows with value 10 s + d to rank d.
      std::vector<std::int64_t> rows;
      Tensors sent{at::empty({0, 2}, at::kInt)};
      Tensors expected{at::empty({0, 2}, at::kInt)};
      for (int peer = 0; peer < all.size(); ++peer) {
        rows.push_back((all.rank() + peer) % 3 * unit);
        sent.push_back(at::full({rows.back(), 2}, 10 * all.rank() + peer, at::kInt));
        expected.push_back(at::full({rows.back(), 2}, 10 * peer + all.rank(), at::kInt));
      }
      EXPECT_TRUE(same(all.all_to_all(at::cat(sent).to(gpu), rows, rows), at::cat(expected)));
    }
  });
}

TEST_P(GpuContract, BroadcastComesFromEveryRoot) {
  run([](Communicator& all, c10::Device gpu) {
    for (int root = 0; root < all.size(); ++root) {
      for (const std::int64_t count : kCounts) {
        at::Tensor tensor = ramp(count, at::kHalf, gpu) + all.rank();
        all.broadcast(tensor, root);
        EXPECT_TRUE(same(tensor, ramp(count, at::kHalf) + root));
      }
    }
  });
}

TEST_P(GpuContract, ListsGatherScatterAndReduceAtTheRoot) {
  run([](Communicator& all, c10::Device gpu) {
    if (all.size() == 1) return;
    c10d::Backend& backend = *all.backend();
    const auto filled = [&](int value) { return at::full({1001}, value, on(gpu, at::kFloat)); };
    const auto list = [&](int value) {
      Tensors tensors;
      for (int r = 0; r < all.size(); ++r) tensors.push_back(filled(value + r));
      return tensors;
    };
    for (int root = 0; root < all.size(); ++root) {
      const bool is_root = all.rank() == root;
      Tensors mine{filled(all.rank())};
      std::vector<Tensors> gathered;
      std::vector<Tensors> shares;
      if (is_root) gathered.push_back(list(-9));
      if (is_root) shares.push_back(list(100 * root));
      c10d::GatherOptions gather;
      gather.rootRank = root;
      backend.gather(gathered, mine, gather)->wait();
      for (int r = 0; r < all.size() && is_root; ++r) {
        EXPECT_TRUE(same(gathered[0][static_cast<std::size_t>(r)], filled(r)));
      }
      Tensors share{filled(-1)};
      c10d::ScatterOptions scatter;
      scatter.rootRank = root;
      backend.scatter(share, shares, scatter)->wait();
      EXPECT_TRUE(same(share[0], filled(100 * root + all.rank())));
      Tensors sum{filled(all.rank())};
      c10d::ReduceOptions reduce;
      reduce.rootRank = root;
      backend.reduce(sum, reduce)->wait();
      EXPECT_TRUE(same(sum[0], filled(is_root ? all.size() * (all.size() - 1) / 2 : all.rank())));
    }
  });
}

TEST_P(GpuContract, MessagesTravelAroundTheRing) {
  run([](Communicator& all, c10::Device gpu) {
    if (all.size() == 1) return;
    const int next = (all.rank() + 1) % all.size();
    const int previous = (all.rank() + all.size() - 1) % all.size();
    for (const std::int64_t count : kCounts) {
      at::Tensor received = at::empty({count}, on(gpu, at::kBFloat16));
      Pending receive = all.post_receive(received, previous, 3);
      at::Tensor sent = ramp(count, at::kBFloat16, gpu) + all.rank();
      all.send(sent, next, 3);
      sent.fill_(-1);
      receive.wait();
      EXPECT_TRUE(same(received, ramp(count, at::kBFloat16) + previous));
    }
  });
}

TEST_P(GpuContract, ReceivesWithOtherTagsOvertake) {
  run([](Communicator& all, c10::Device gpu) {
    if (all.size() == 1 || all.rank() > 1) return;
    const int peer = 1 - all.rank();
    const auto filled = [&](int value) { return at::full({5000}, value, on(gpu, at::kLong)); };
    Pending sends[] = {all.post_send(filled(10 + all.rank()), peer, 1), all.post_send(filled(20 + all.rank()), peer, 2)};
    at::Tensor first = filled(0);
    at::Tensor second = filled(0);
    all.receive(second, peer, 2);
    all.receive(first, peer, 1);
    for (Pending& send : sends) send.wait();
    EXPECT_TRUE(same(first, filled(10 + peer)) && same(second, filled(20 + peer)));
  });
}

TEST_P(GpuContract, BuffersAreNotReusedBeforePeersHaveReadThem) {
  run([](Communicator& all, c10::Device gpu) {
    if (all.size() == 1) return;
    for (int round = 0; round < 50; ++round) {
      const std::int64_t count = round % 2 == 0 ? 4'000'000 : 1000;
      at::Tensor mine = at::full({count}, round + all.rank(), on(gpu, at::kInt));
      const at::Tensor gathered = all.all_gather(mine);
      mine.fill_(-1);
      Tensors bucket{at::full({count}, round, on(gpu, at::kInt))};
      // The handle is dropped at once, and so is the memory while the reduction may be under way.
      static_cast<void>(all.all_reduce_coalesced(bucket));
      bucket.clear();
      at::full({count}, -7, on(gpu, at::kInt));
      const at::Tensor expected = (at::arange(all.size(), on(gpu, at::kInt)) + round).repeat_interleave(count);
      ASSERT_TRUE(gathered.equal(expected)) << "round " << round;
    }
  });
}

TEST_P(GpuContract, OverlappingGroupsKeepTheirOwnOrder) {
  ThreadOptions options;
  options.world.timeout = std::chrono::seconds(60);
  options.world.device = c10::Device("cuda:0");
  options.world.makers = comm::load_cuda_makers();
  run_threads(size(), options, [](const std::shared_ptr<comm::World>& world) {
    std::vector<int> half;
    std::vector<int> everyone;
    for (int r = 0; r < world->size(); ++r) {
      everyone.push_back(r);
      if (r % 2 == world->rank() % 2) half.push_back(r);
    }
    const Communicator in_half = world->group(half, "half");
    const Communicator all = world->group(everyone, "all");
    Tensors small{at::full({100}, world->rank(), on(world->device(), at::kFloat))};
    Tensors large{at::full({100'000}, world->rank(), on(world->device(), at::kFloat))};
    Pending pending[] = {in_half.all_reduce_coalesced(small), all.all_reduce_coalesced(large)};
    pending[1].wait();
    pending[0].wait();
    EXPECT_TRUE(same(small[0], at::full({100}, std::accumulate(half.begin(), half.end(), 0), at::kFloat)));
    const int sum = std::accumulate(everyone.begin(), everyone.end(), 0);
    EXPECT_TRUE(same(large[0], at::full({100'000}, sum, at::kFloat)));
  });
}

INSTANTIATE_TEST_SUITE_P(CudaThreads, GpuContract, ::testing::Range(1, 5), [](const auto& parameter) {
  return "On" + std::to_string(parameter.param) + "Ranks";
});

class GpuGroup : public OnGpu<::testing::Test> {};

// Values whose sum depends on the order of addition.
at::Tensor uneven(int rank, at::ScalarType dtype) {
  return (at::arange(100'003, at::kDouble) * 0.7371 + rank * 1.3).sin().div(rank + 1).to(dtype);
}

TEST_F(GpuGroup, SumsHaveTheBitsOfTheFoldInRankOrder) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    at::Tensor fold = uneven(0, dtype).to(at::kFloat);
    for (int rank = 1; rank < 4; ++rank) fold += uneven(rank, dtype).to(at::kFloat);
    run(4, [&](Communicator& all, c10::Device gpu) {
      at::Tensor tensor = uneven(all.rank(), dtype).to(gpu);
      all.all_reduce(tensor);
      EXPECT_TRUE(same(tensor, fold.to(dtype))) << dtype;
    });
  }
}

TEST_F(GpuGroup, RanksThatDisagreeMeetInAnErrorThatNamesBothCalls) {
  try {
    run(2, [](Communicator& all, c10::Device gpu) {
      at::Tensor tensor = at::zeros({8}, on(gpu, at::kFloat));
      all.rank() == 0 ? all.all_reduce(tensor) : all.broadcast(tensor, 0);
    });
    FAIL() << "nothing was thrown";
  } catch (const CommunicationError& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("all_reduce(32 bytes"), std::string::npos) << message;
    EXPECT_NE(message.find("broadcast(32 bytes"), std::string::npos) << message;
  }
}

TEST_F(GpuGroup, AFailingRankWakesItsPeers) {
  EXPECT_THROW(run(3,
                   [](Communicator& all, c10::Device gpu) {
                     check<FileError>(all.rank() != 1, "rank 1 cannot go on");
                     at::Tensor tensor = at::zeros({8}, on(gpu, at::kFloat));
                     all.all_reduce(tensor);
                   }),
               FileError);
}

TEST_F(GpuGroup, RefusesTensorsOfTheHost) {
  run(2, [](Communicator& all, c10::Device) {
    at::Tensor tensor = at::zeros({8});
    EXPECT_THROW(all.all_reduce(tensor), ShapeError);
  });
}

TEST_F(GpuGroup, RanksSpreadOverSeveralGpus) {
  if (comm::detail::count_gpus() < 2) GTEST_SKIP() << "one GPU here";
  run(
      4,
      [](Communicator& all, c10::Device gpu) {
        EXPECT_EQ(gpu.index(), all.rank() % comm::detail::count_gpus());
        at::Tensor tensor = ramp(1'000'003, at::kFloat, gpu) + all.rank();
        all.all_reduce(tensor);
        EXPECT_TRUE(same(tensor, ramp(1'000'003, at::kFloat) * 4 + 6));
        EXPECT_TRUE(same(all.all_gather(at::full({2}, all.rank(), on(gpu, at::kInt))),
                         at::arange(4).to(at::kInt).repeat_interleave(2)));
      },
      c10::Device("cuda"));
}

}  // namespace

}  // namespace tessera::test
