// SPDX-License-Identifier: Apache-2.0
// NCCL as far as one GPU goes: a group of one rank. NCCL refuses two ranks on one GPU.
#include "cuda/gpu.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/zeros_like.h>

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/HashStore.hpp>

namespace tessera::test {

namespace {

class NcclOfOneRank : public OnGpu<::testing::Test> {
 protected:
  void SetUp() override {
    OnGpu::SetUp();
    if (IsSkipped()) return;
    backend_ = comm::load_cuda_makers().at("nccl")({.rank = 0,
                                                    .members = {0},
                                                    .name = "alone",
                                                    .timeout = std::chrono::seconds(60),
                                                    .device = gpu(),
                                                    .store = c10::make_intrusive<c10d::HashStore>(),
                                                    .host = {}});
  }
  static c10::Device gpu() { return c10::Device("cuda:0"); }
  static at::Tensor numbers() { return at::arange(10'001, at::TensorOptions(gpu()).dtype(at::kFloat)); }

  c10::intrusive_ptr<c10d::Backend> backend_;
};

TEST_F(NcclOfOneRank, SumsAndGathersAndScattersItsOwn) {
  std::vector<at::Tensor> sum{numbers()};
  backend_->allreduce(sum)->wait();
  EXPECT_TRUE(sum[0].equal(numbers()));
  at::Tensor input = numbers();
  at::Tensor gathered = at::zeros_like(input);
  backend_->_allgather_base(gathered, input)->wait();
  EXPECT_TRUE(gathered.equal(input));
  at::Tensor scattered = at::zeros_like(input);
  backend_->_reduce_scatter_base(scattered, input)->wait();
  EXPECT_TRUE(scattered.equal(input));
}

TEST_F(NcclOfOneRank, ReducesAListInOneCallAndMeetsAtTheBarrier) {
  std::vector<at::Tensor> bucket{numbers(), numbers().slice(0, 0, 7).clone()};
  backend_->allreduce_coalesced(bucket)->wait();
  backend_->barrier()->wait();
  EXPECT_TRUE(bucket[0].equal(numbers()));
  EXPECT_TRUE(bucket[1].equal(numbers().slice(0, 0, 7)));
}

}  // namespace

}  // namespace tessera::test
