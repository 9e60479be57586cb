// SPDX-License-Identifier: Apache-2.0
// The contract of Communicator, on every transport, with answers in closed form.
#include "tessera/comm/communicator.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/complex.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/imag.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "comm/ranks.h"
#include "tessera/base/error.h"

namespace tessera::comm::testing {

namespace {

constexpr at::ScalarType kDtypes[] = {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf,
                                      at::kLong,   at::kInt,   at::kByte};
// Empty, one element, odd, several cache lines, beyond the limit of staged messages, several staging chunks.
constexpr std::int64_t kCounts[] = {0, 1, 7, 1027, 40'001, 400'003};

// 0 1 2 3 4 0 1 2 ...: sums over ranks stay exact in every dtype.
at::Tensor ramp(std::int64_t count, at::ScalarType dtype) { return at::arange(count).remainder(5).to(dtype); }

bool same(const at::Tensor& a, const at::Tensor& b) {
  return a.sizes() == b.sizes() && a.scalar_type() == b.scalar_type() && a.equal(b);
}

class Contract : public EveryTransport {};

TEST_P(Contract, AllReduceSumsEveryDtypeAndSize) {
  const int ranks = size();
  run([&](Communicator& all) {
    for (const at::ScalarType dtype : kDtypes) {
      for (const std::int64_t count : kCounts) {
        if (count > 2000 && dtype != at::kFloat && dtype != at::kBFloat16) continue;
        at::Tensor tensor = ramp(count, dtype) + all.rank();
        all.all_reduce(tensor);
        EXPECT_TRUE(same(tensor, ramp(count, dtype) * ranks + ranks * (ranks - 1) / 2)) << dtype << " x " << count;
      }
    }
  });
}

TEST_P(Contract, AllReduceTakesMaximumMinimumAndProduct) {
  const int ranks = size();
  run([&](Communicator& all) {
    for (const at::ScalarType dtype : kDtypes) {
      at::Tensor largest = ramp(1027, dtype) + all.rank();
      at::Tensor smallest = largest.clone();
      at::Tensor product = at::full({1027}, all.rank() < 3 ? 2 : 1, dtype);
      all.all_reduce(largest, ReduceOp::kMax);
      all.all_reduce(smallest, ReduceOp::kMin);
      all.all_reduce(product, ReduceOp::kProduct);
      EXPECT_TRUE(same(largest, ramp(1027, dtype) + (ranks - 1))) << dtype;
      EXPECT_TRUE(same(smallest, ramp(1027, dtype))) << dtype;
      EXPECT_TRUE(same(product, at::full({1027}, 1 << std::min(ranks, 3), dtype))) << dtype;
    }
  });
}

TEST_P(Contract, AllReduceAveragesFloats) {
  const int ranks = size();
  run([&](Communicator& all) {
    for (const at::ScalarType dtype : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
      at::Tensor tensor = ramp(1027, dtype) + 2 * all.rank();
      all.all_reduce(tensor, ReduceOp::kAvg);
      EXPECT_TRUE(same(tensor, ramp(1027, dtype) + (ranks - 1))) << dtype;
    }
  });
}

TEST_P(Contract, BoolReducesAsOrAndAnd) {
  run([&](Communicator& all) {
    at::Tensor any = at::zeros({9}, at::kBool);
    any[3] = all.rank() == all.size() - 1;
    at::Tensor every = at::full({9}, true, at::kBool);
    every[5] = all.rank() != 0;
    all.all_reduce(any, ReduceOp::kSum);
    all.all_reduce(every, ReduceOp::kProduct);
    EXPECT_TRUE(any.sum().item<std::int64_t>() == 1 && any[3].item<bool>());
    EXPECT_TRUE(every.sum().item<std::int64_t>() == 8 && !every[5].item<bool>());
    const at::Tensor rows = all.all_gather(at::full({1}, all.rank() % 2 == 1, at::kBool));
    for (int r = 0; r < all.size(); ++r) EXPECT_EQ(rows[r].item<bool>(), r % 2 == 1);
  });
}

TEST_P(Contract, ComplexNumbersTravelAsPairs) {
  const int ranks = size();
  run([&](Communicator& all) {
    for (const at::ScalarType dtype : {at::kComplexDouble, at::kComplexFloat}) {
      const auto real = c10::toRealValueType(dtype);
      const auto numbers = [&](std::int64_t rows, int re, int im) {
        return at::complex(at::full({rows, 2}, re, real), at::full({rows, 2}, im, real));
      };
      const int sum = ranks * (ranks - 1) / 2;
      for (const std::int64_t rows : {0, 3, 20'001}) {
        at::Tensor tensor = numbers(rows, all.rank(), 1);
        all.all_reduce(tensor);
        EXPECT_TRUE(same(tensor, numbers(rows, sum, ranks)));
        // Lazily conjugated, transposed and read as an imaginary part: memory is not what the tensor shows.
        at::Tensor conjugate = numbers(rows, all.rank(), 1).t().conj();
        all.all_reduce_coalesced({conjugate}).wait();
        EXPECT_TRUE(same(conjugate.resolve_conj(), numbers(rows, sum, -ranks).t()));
        at::Tensor negated = at::imag(numbers(rows, 1, all.rank()).conj());
        all.all_reduce(negated);
        EXPECT_TRUE(same(negated.resolve_neg(), at::full({rows, 2}, -sum, real)));
        EXPECT_TRUE(same(all.all_gather(numbers(rows, 5, 2).conj()), numbers(rows * ranks, 5, -2)));
        const at::Tensor mine = all.reduce_scatter(numbers(rows * ranks, all.rank(), 1), ReduceOp::kAvg);
        EXPECT_TRUE(same(mine * ranks, numbers(rows, sum, ranks)));
        const std::vector<std::int64_t> equal(static_cast<std::size_t>(ranks), rows);
        const at::Tensor exchanged = all.all_to_all(numbers(rows * ranks, 3, 4), equal, equal);
        EXPECT_TRUE(same(exchanged, numbers(rows * ranks, 3, 4)));
        at::Tensor root = numbers(rows, all.rank(), 7).conj();
        all.broadcast(root, ranks - 1);
        EXPECT_TRUE(same(root.resolve_conj(), numbers(rows, ranks - 1, -7)));
        if (ranks == 1) continue;
        at::Tensor received = numbers(rows, 0, 0).conj();
        const Pending sent = all.post_send(numbers(rows, all.rank(), 2), (all.rank() + 1) % ranks);
        all.receive(received, (all.rank() + ranks - 1) % ranks);
        EXPECT_TRUE(same(received.resolve_conj(), numbers(rows, (all.rank() + ranks - 1) % ranks, 2)));
        Pending(sent).wait();
      }
    }
    at::Tensor tensor = at::zeros({2}, at::kComplexFloat);
    if (ranks == 1) return;
    EXPECT_THROW(all.all_reduce(tensor, ReduceOp::kMax), ShapeError);
  });
}

TEST_P(Contract, StridedTensorsAreReducedInPlace) {
  const int ranks = size();
  run([&](Communicator& all) {
    at::Tensor whole = at::zeros({6, 10}, at::kFloat);
    at::Tensor columns = whole.t().slice(0, 1, 10, 3);
    columns.fill_(all.rank() + 1);
    all.all_reduce(columns);
    EXPECT_TRUE(same(columns, at::full({3, 6}, ranks * (ranks + 1) / 2, at::kFloat)));
    EXPECT_EQ(whole.sum().item<float>(), static_cast<float>(18 * ranks * (ranks + 1) / 2));
    all.broadcast(columns.fill_(all.rank()), all.size() - 1);
    EXPECT_TRUE(same(columns, at::full({3, 6}, ranks - 1, at::kFloat)));
    EXPECT_TRUE(same(all.all_gather(columns.fill_(7)), at::full({3 * ranks, 6}, 7, at::kFloat)));
  });
}

TEST_P(Contract, CoalescedReductionsMayBeWaitedForInAnyOrder) {
  const int ranks = size();
  run([&](Communicator& all) {
    std::vector<std::vector<at::Tensor>> buckets;
    std::vector<Pending> pending;
    for (int bucket = 0; bucket < 3; ++bucket) {
      std::vector<at::Tensor> tensors;
      for (const std::int64_t count : kCounts) {
        tensors.push_back(at::full({count}, all.rank() + bucket, at::kFloat));
      }
      at::Tensor whole = at::full({5, 4}, all.rank() + bucket, at::kFloat);
      tensors.push_back(whole.t());
      buckets.push_back(tensors);
      pending.push_back(all.all_reduce_coalesced(tensors));
    }
    at::Tensor between = at::full({3}, 1, at::kInt);
    all.all_reduce(between);
    EXPECT_EQ(between[2].item<int>(), ranks);
    for (int bucket = 2; bucket >= 0; --bucket) {
      const auto index = static_cast<std::size_t>(bucket);
      pending[index].wait();
      EXPECT_TRUE(pending[index].finished());
      const int expected = ranks * (ranks - 1) / 2 + ranks * bucket;
      for (const at::Tensor& tensor : buckets[index]) {
        EXPECT_TRUE(same(tensor, at::full(tensor.sizes(), expected, at::kFloat)));
      }
    }
  });
}

TEST_P(Contract, AllGatherStacksRowsByRank) {
  const int ranks = size();
  run([&](Communicator& all) {
    for (const std::int64_t rows : {0, 1, 3, 30'001}) {
      const at::Tensor mine = at::full({rows, 3}, all.rank(), at::kInt);
      const at::Tensor gathered = all.all_gather(mine);
      EXPECT_TRUE(same(gathered, at::arange(ranks).to(at::kInt).repeat_interleave(rows).unsqueeze(1).expand({-1, 3})));
    }
    const at::Tensor scalars = all.all_gather(at::full({}, all.rank(), at::kLong));
    EXPECT_TRUE(same(scalars, at::arange(ranks)));
  });
}

TEST_P(Contract, PostedGathersFillTheirOutputsInAnyOrderOfWaits) {
  const int ranks = size();
  run([&](Communicator& all) {
    std::vector<at::Tensor> outputs;
    std::vector<Pending> pending;
    for (const std::int64_t rows : {3, 0, 50'001}) {
      outputs.push_back(at::empty({ranks * rows, 2}, at::kFloat));
      // The shard lies transposed: what is sent is a copy, which must live until it is there.
      pending.push_back(all.post_all_gather(at::full({2, rows}, all.rank() + 1, at::kFloat).t(), outputs.back()));
    }
    EXPECT_EQ(all.all_gather(at::full({1}, all.rank(), at::kInt)).sum().item<std::int64_t>(), ranks * (ranks - 1) / 2);
    for (std::size_t i = pending.size(); i-- > 0;) {
      pending[i].wait();
      const at::Tensor expected = at::arange(1, ranks + 1, at::kFloat).repeat_interleave(outputs[i].size(0) / ranks);
      EXPECT_TRUE(same(outputs[i], expected.unsqueeze(1).expand({-1, 2})));
    }
    at::Tensor small = at::empty({ranks * 2 - 1});
    EXPECT_THROW(static_cast<void>(all.post_all_gather(at::zeros({2}), small)), ShapeError);
  });
}

TEST_P(Contract, ReduceScatterLeavesEachRankItsRows) {
  const int ranks = size();
  run([&](Communicator& all) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kLong}) {
      for (const std::int64_t rows : {0, 1, 3, 50'001}) {
        const at::Tensor input = at::arange(ranks).repeat_interleave(rows).to(dtype).unsqueeze(1) + all.rank();
        const at::Tensor mine = all.reduce_scatter(input.expand({-1, 2}));
        EXPECT_TRUE(same(mine, at::full({rows, 2}, ranks * all.rank() + ranks * (ranks - 1) / 2, dtype)));
      }
    }
    if (all.size() > 1) {
      EXPECT_THROW(static_cast<void>(all.reduce_scatter(at::zeros({all.size() + 1}))), ShapeError);
    }
  });
}

TEST_P(Contract, AllToAllMovesUnevenAndEmptyShares) {
  const int ranks = size();
  run([&](Communicator& all) {
    for (const std::int64_t unit : {1, 3, 20'011}) {
      // Rank s sends (s + d) % 3 units of rows with value 10 s + d to rank d.
      std::vector<std::int64_t> send;
      std::vector<std::int64_t> receive;
      std::vector<at::Tensor> sent{at::empty({0, 2}, at::kInt)};
      std::vector<at::Tensor> expected{at::empty({0, 2}, at::kInt)};
      for (int peer = 0; peer < ranks; ++peer) {
        send.push_back((all.rank() + peer) % 3 * unit);
        receive.push_back(send.back());
        sent.push_back(at::full({send.back(), 2}, 10 * all.rank() + peer, at::kInt));
        expected.push_back(at::full({receive.back(), 2}, 10 * peer + all.rank(), at::kInt));
      }
      EXPECT_TRUE(same(all.all_to_all(at::cat(sent), send, receive), at::cat(expected)));
    }
  });
}

TEST_P(Contract, BroadcastComesFromEveryRoot) {
  run([&](Communicator& all) {
    for (int root = 0; root < all.size(); ++root) {
      for (const std::int64_t count : kCounts) {
        at::Tensor tensor = ramp(count, at::kHalf) + all.rank();
        all.broadcast(tensor, root);
        EXPECT_TRUE(same(tensor, ramp(count, at::kHalf) + root));
      }
    }
    EXPECT_THROW(
        {
          at::Tensor tensor = at::zeros({1});
          all.broadcast(tensor, all.size());
        },
        ShapeError);
  });
}

TEST_P(Contract, MessagesTravelAroundTheRing) {
  run([&](Communicator& all) {
    if (all.size() == 1) return;
    const int next = (all.rank() + 1) % all.size();
    const int previous = (all.rank() + all.size() - 1) % all.size();
    for (const std::int64_t count : kCounts) {
      at::Tensor received = at::empty({count}, at::kBFloat16);
      Pending receive = all.post_receive(received, previous, 3);
      all.send(ramp(count, at::kBFloat16) + all.rank(), next, 3);
      receive.wait();
      EXPECT_TRUE(same(received, ramp(count, at::kBFloat16) + previous));
    }
  });
}

TEST_P(Contract, ReceivesWithOtherTagsOvertake) {
  run([&](Communicator& all) {
    if (all.size() == 1 || all.rank() > 1) return;
    const int peer = 1 - all.rank();
    for (const std::int64_t count : {5L, 300'000L}) {
      at::Tensor first = at::full({count}, 10 + all.rank());
      at::Tensor second = at::full({count}, 20 + all.rank());
      at::Tensor received_first = at::zeros({count}, at::kLong);
      at::Tensor received_second = at::zeros({count}, at::kLong);
      Pending sends[] = {all.post_send(first, peer, 1), all.post_send(second, peer, 2)};
      all.receive(received_second, peer, 2);
      all.receive(received_first, peer, 1);
      for (Pending& send : sends) send.wait();
      EXPECT_TRUE(same(received_first, at::full({count}, 10 + peer)));
      EXPECT_TRUE(same(received_second, at::full({count}, 20 + peer)));
    }
  });
}

TEST_P(Contract, OverlappingGroupsKeepTheirOwnOrder) {
  const std::string transport = GetParam().transport;
  const int ranks = size();
  run_ranks(transport, ranks, [&](World& world) {
    std::vector<int> even;
    std::vector<int> odd;
    for (int r = 0; r < ranks; ++r) (r % 2 == 0 ? even : odd).push_back(r);
    const std::vector<int>& mine = world.rank() % 2 == 0 ? even : odd;
    const Communicator half = world.group(mine, "half");
    const Communicator all = world.group(everyone(ranks), "all");
    const Communicator self = world.group({world.rank()}, "self");
    EXPECT_EQ(half.size(), static_cast<int>(mine.size()));
    EXPECT_EQ(mine[static_cast<std::size_t>(half.rank())], world.rank());
    std::vector<at::Tensor> in_half{at::full({100}, world.rank(), at::kFloat)};
    std::vector<at::Tensor> in_all{at::full({100'000}, world.rank(), at::kFloat)};
    std::vector<at::Tensor> alone{at::full({100}, world.rank(), at::kFloat)};
    Pending pending[] = {half.all_reduce_coalesced(in_half), all.all_reduce_coalesced(in_all),
                         self.all_reduce_coalesced(alone)};
    for (int i = 2; i >= 0; --i) pending[i].wait();
    const int sum_of_half = std::accumulate(mine.begin(), mine.end(), 0);
    EXPECT_TRUE(same(in_half[0], at::full({100}, sum_of_half, at::kFloat)));
    EXPECT_TRUE(same(in_all[0], at::full({100'000}, ranks * (ranks - 1) / 2, at::kFloat)));
    EXPECT_TRUE(same(alone[0], at::full({100}, world.rank(), at::kFloat)));
  });
}

TEST_P(Contract, TrafficCountsTheLargerBuffer) {
  const int ranks = size();
  run([&](Communicator& all) {
    all.barrier();
    const Traffic before = all.traffic();
    at::Tensor tensor = at::zeros({10}, at::kFloat);
    all.all_reduce(tensor);
    static_cast<void>(all.all_gather(tensor));
    static_cast<void>(all.reduce_scatter(at::zeros({ranks * 3}, at::kDouble)));
    const bool counts = ranks > 1;
    EXPECT_EQ(all.traffic().calls - before.calls, counts ? 3 : 0);
    EXPECT_EQ(all.traffic().bytes - before.bytes, counts ? 40 + 40 * ranks + 24 * ranks : 0);
  });
}

INSTANTIATE_TEST_SUITE_P(Communicator, Contract, ::testing::ValuesIn(every_job()), job_name);

// Values whose sum depends on the order of addition.
at::Tensor uneven(int rank, at::ScalarType dtype) {
  return (at::arange(100'003, at::kDouble) * 0.7371 + rank * 1.3).sin().div(rank + 1).to(dtype);
}

at::Tensor sum_as_seen(const std::string& transport, at::ScalarType dtype) {
  at::Tensor result;
  run_ranks(transport, 4, [&](World& world) {
    const Communicator all = world.group(everyone(4), "all");
    at::Tensor tensor = uneven(all.rank(), dtype);
    all.all_reduce(tensor);
    if (all.rank() == 2) result = tensor;
  });
  return result;
}

TEST(AllReduce, ThreadsAndProcessesGiveTheBitsOfTheFoldInRankOrder) {
  at::Tensor fold = uneven(0, at::kFloat);
  for (int rank = 1; rank < 4; ++rank) fold += uneven(rank, at::kFloat);
  EXPECT_TRUE(same(sum_as_seen("thread", at::kFloat), fold));
  EXPECT_TRUE(same(sum_as_seen("shm", at::kFloat), fold));
}

TEST(AllReduce, SixteenBitFloatsAccumulateInFloat32AndRoundOnce) {
  for (const at::ScalarType dtype : {at::kBFloat16, at::kHalf}) {
    at::Tensor fold = uneven(0, dtype).to(at::kFloat);
    for (int rank = 1; rank < 4; ++rank) fold += uneven(rank, dtype).to(at::kFloat);
    EXPECT_TRUE(same(sum_as_seen("thread", dtype), fold.to(dtype)));
    EXPECT_TRUE(same(sum_as_seen("shm", dtype), fold.to(dtype)));
  }
}

TEST(AllReduce, RefusesTheAverageOfBoolOn2Ranks) {
  run_ranks("thread", 2, [](World& world) {
    const Communicator all = world.group({0, 1}, "all");
    at::Tensor tensor = at::zeros({4}, at::kBool);
    EXPECT_THROW(all.all_reduce(tensor, ReduceOp::kAvg), ShapeError);
  });
}

TEST(Communicator, DefaultIsTheGroupOfOne) {
  const Communicator self;
  EXPECT_EQ(self.size(), 1);
  EXPECT_EQ(self.backend(), nullptr);
  at::Tensor tensor = at::full({3}, 2);
  self.all_reduce(tensor, ReduceOp::kAvg);
  self.broadcast(tensor, 0);
  self.barrier();
  EXPECT_TRUE(same(tensor, at::full({3}, 2)));
  EXPECT_EQ(self.traffic().calls, 0);
  EXPECT_THROW(self.send(tensor, 0), ShapeError);
}

}  // namespace

}  // namespace tessera::comm::testing
