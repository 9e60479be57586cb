// SPDX-License-Identifier: Apache-2.0
// The c10d interface of the thread and shm transports: lists, roots, asynchronous calls.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include "comm/ranks.h"
#include "tessera/base/error.h"

namespace tessera::comm::testing {

namespace {

using Tensors = std::vector<at::Tensor>;

Tensors filled(int count, std::int64_t elements, int value) {
  Tensors tensors;
  for (int i = 0; i < count; ++i) tensors.push_back(at::full({elements}, value + i, at::kFloat));
  return tensors;
}

void expect_filled(const at::Tensor& tensor, int value) {
  EXPECT_TRUE(tensor.equal(at::full(tensor.sizes(), value, tensor.options()))) << value;
}

class LocalBackendContract : public EveryTransport {
 protected:
  void run_backend(const std::function<void(c10d::Backend&, int rank, int size)>& body) {
    run([&](Communicator& all) {
      if (all.size() > 1) body(*all.backend(), all.rank(), all.size());
    });
  }
};

constexpr std::int64_t kElements[] = {1, 1000, 200'000};

TEST_P(LocalBackendContract, ListsGatherAndScatterByRank) {
  run_backend([](c10d::Backend& backend, int rank, int size) {
    for (const std::int64_t n : kElements) {
      Tensors mine = filled(1, n, rank);
      std::vector<Tensors> gathered{filled(size, n, -1)};
      backend.allgather(gathered, mine)->wait();
      for (int r = 0; r < size; ++r) expect_filled(gathered[0][static_cast<std::size_t>(r)], r);

      for (int root = 0; root < size; ++root) {
        std::vector<Tensors> at_root;
        if (rank == root) at_root.push_back(filled(size, n, -1));
        c10d::GatherOptions gather;
        gather.rootRank = root;
        backend.gather(at_root, mine, gather)->wait();
        for (int r = 0; r < size && rank == root; ++r) expect_filled(at_root[0][static_cast<std::size_t>(r)], r);

        std::vector<Tensors> shares;
        if (rank == root) shares.push_back(filled(size, n, 100 * root));
        Tensors share = filled(1, n, -1);
        c10d::ScatterOptions scatter;
        scatter.rootRank = root;
        backend.scatter(share, shares, scatter)->wait();
        expect_filled(share[0], 100 * root + rank);
      }
    }
  });
}

TEST_P(LocalBackendContract, ReduceReachesOnlyTheRoot) {
  run_backend([](c10d::Backend& backend, int rank, int size) {
    for (const std::int64_t n : kElements) {
      Tensors tensors = filled(1, n, rank);
      c10d::ReduceOptions options;
      options.rootRank = size - 1;
      backend.reduce(tensors, options)->wait();
      expect_filled(tensors[0], rank == size - 1 ? size * (size - 1) / 2 : rank);
    }
  });
}

TEST_P(LocalBackendContract, ListsReduceScatterAndExchange) {
  run_backend([](c10d::Backend& backend, int rank, int size) {
    for (const std::int64_t n : kElements) {
      std::vector<Tensors> inputs{filled(size, n, rank)};
      Tensors output = filled(1, n, -1);
      backend.reduce_scatter(output, inputs)->wait();
      expect_filled(output[0], size * rank + size * (size - 1) / 2);

      Tensors sent = filled(size, n, 100 * rank);
      Tensors received = filled(size, n, -1);
      backend.alltoall(received, sent)->wait();
      for (int r = 0; r < size; ++r) expect_filled(received[static_cast<std::size_t>(r)], 100 * r + rank);
    }
  });
}

TEST_P(LocalBackendContract, PostedCollectivesHoldTheirTensors) {
  run_backend([](c10d::Backend& backend, int rank, int size) {
    at::Tensor seen;
    c10::intrusive_ptr<c10d::Work> work;
    {
      Tensors inputs = filled(2, 50'000, rank);
      Tensors outputs{at::empty({50'000 * size}, at::kFloat), at::empty({50'000 * size}, at::kFloat)};
      seen = outputs[1];
      work = backend.allgather_into_tensor_coalesced(outputs, inputs);
    }
    EXPECT_FALSE(work->isCompleted());
    work->wait();
    EXPECT_TRUE(work->isCompleted());
    EXPECT_TRUE(seen.equal(at::arange(size).repeat_interleave(50'000).to(at::kFloat) + 1));
  });
}

TEST_P(LocalBackendContract, BlockedSendersPassEachOther) {
  run_backend([](c10d::Backend& backend, int rank, int size) {
    // Larger than any ring, and both sides send before they receive.
    const int peer = rank ^ 1;
    if (peer >= size) return;
    Tensors sent = filled(1, 500'000, rank);
    Tensors received = filled(1, 500'000, -1);
    backend.send(sent, peer, 0)->wait();
    backend.recv(received, peer, 0)->wait();
    expect_filled(received[0], peer);
  });
}

TEST_P(LocalBackendContract, ReceiveFromAnyoneSaysFromWhom) {
  run_backend([](c10d::Backend& backend, int rank, int size) {
    if (rank > 0) {
      Tensors sent = filled(1, 10, rank);
      backend.send(sent, 0, 9)->wait();
      return;
    }
    for (int i = 1; i < size; ++i) {
      Tensors received = filled(1, 10, -1);
      const auto work = backend.recvAnysource(received, 9);
      work->wait();
      expect_filled(received[0], work->sourceRank());
    }
  });
}

TEST_P(LocalBackendContract, RefusesTensorsThatDoNotFit) {
  run_backend([](c10d::Backend& backend, int, int) {
    Tensors strided{at::zeros({4, 4}).t()};
    EXPECT_THROW(backend.allreduce(strided), ShapeError);
    Tensors two = filled(2, 3, 0);
    EXPECT_THROW(backend.broadcast(two), ShapeError);
    at::Tensor input = at::zeros({3});
    at::Tensor output = at::zeros({4});
    EXPECT_THROW(backend._allgather_base(output, input), ShapeError);
  });
}

INSTANTIATE_TEST_SUITE_P(LocalBackend, LocalBackendContract, ::testing::ValuesIn(our_jobs()), job_name);

}  // namespace

}  // namespace tessera::comm::testing
