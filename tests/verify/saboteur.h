// SPDX-License-Identifier: Apache-2.0
// A world whose collectives can be made wrong, for asking whether the verifier can say no.
#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <memory>
#include <string>
#include <vector>

#include "tessera/comm/world.h"

namespace tessera::test {

enum class Sabotage {
  kNone,
  kMissingAllReduce,     ///< gradient buckets are not summed
  kDoubledAllReduce,     ///< gradient buckets are summed twice
  kSumForAverage,        ///< the global count of a mean is not summed: every rank divides by its own
  kSwappedRanks,         ///< all-gather puts the first two ranks' shards in each other's place
};

/// Forwards to a real backend, except for one mistake.
class SabotagedBackend final : public c10d::Backend {
 public:
  SabotagedBackend(c10::intrusive_ptr<c10d::Backend> inner, Sabotage sabotage)
      : c10d::Backend(inner->getRank(), inner->getSize()), inner_(std::move(inner)), sabotage_(sabotage) {}

  const std::string getBackendName() const override { return "sabotaged"; }

  c10::intrusive_ptr<c10d::Work> allreduce(std::vector<at::Tensor>& tensors,
                                           const c10d::AllreduceOptions& options) override {
    if (sabotage_ == Sabotage::kSumForAverage && tensors.front().numel() == 1) return inner_->barrier();
    return inner_->allreduce(tensors, options);
  }
  c10::intrusive_ptr<c10d::Work> allreduce_coalesced(std::vector<at::Tensor>& tensors,
                                                     const c10d::AllreduceCoalescedOptions& options) override {
    if (sabotage_ == Sabotage::kMissingAllReduce) return inner_->barrier();
    if (sabotage_ == Sabotage::kDoubledAllReduce) inner_->allreduce_coalesced(tensors, options)->wait();
    return inner_->allreduce_coalesced(tensors, options);
  }
  c10::intrusive_ptr<c10d::Work> _allgather_base(at::Tensor& output, at::Tensor& input,
                                                 const c10d::AllgatherOptions& options) override {
    auto work = inner_->_allgather_base(output, input, options);
    if (sabotage_ == Sabotage::kSwappedRanks) {
      work->wait();
      at::Tensor shards = output.view({getSize(), -1});
      const at::Tensor first = shards[0].clone();
      shards[0].copy_(shards[1]);
      shards[1].copy_(first);
    }
    return work;
  }
  c10::intrusive_ptr<c10d::Work> _reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                                                      const c10d::ReduceScatterOptions& options) override {
    return inner_->_reduce_scatter_base(output, input, options);
  }
  c10::intrusive_ptr<c10d::Work> alltoall_base(at::Tensor& output, at::Tensor& input,
                                               std::vector<std::int64_t>& receive, std::vector<std::int64_t>& send,
                                               const c10d::AllToAllOptions& options) override {
    return inner_->alltoall_base(output, input, receive, send, options);
  }
  c10::intrusive_ptr<c10d::Work> broadcast(std::vector<at::Tensor>& tensors,
                                           const c10d::BroadcastOptions& options) override {
    return inner_->broadcast(tensors, options);
  }
  c10::intrusive_ptr<c10d::Work> barrier(const c10d::BarrierOptions& options) override {
    return inner_->barrier(options);
  }

 private:
  c10::intrusive_ptr<c10d::Backend> inner_;
  Sabotage sabotage_;
};

class SabotagedWorld final : public comm::World {
 public:
  SabotagedWorld(std::shared_ptr<comm::World> inner, Sabotage sabotage)
      : comm::World(inner->rank(), inner->size(), inner->local_rank(), inner->device()),
        inner_(std::move(inner)),
        sabotage_(sabotage) {}
  std::string transport() const override { return inner_->transport(); }
  comm::Communicator group(const std::vector<int>& members, const std::string& name) override {
    const comm::Communicator honest = inner_->group(members, name);
    return {c10::make_intrusive<SabotagedBackend>(honest.backend(), sabotage_), name};
  }

 private:
  std::shared_ptr<comm::World> inner_;
  Sabotage sabotage_;
};

}  // namespace tessera::test
