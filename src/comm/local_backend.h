// SPDX-License-Identifier: Apache-2.0
// The c10d face of the two machine-local transports: tensors in, collectives over bytes out.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <memory>
#include <string>
#include <vector>

#include "comm/collectives.h"
#include "comm/point_to_point.h"

namespace tessera::comm::detail {

/// What makes one rank's end of a machine-local group.
struct LocalGroup {
  Region region;
  Reach reach = Reach::kDirect;
  int rank = 0;
  /// "thread" or "shm".
  std::string transport;
  ArrivalOptions arrival;
  std::shared_ptr<Engine> engine;
};

/// Collectives with asyncOp (c10d's default) are queued in the rank's engine and done when somebody waits on it;
/// with asyncOp = false they are done before the call returns.
///
/// Inputs  contiguous CPU tensors
/// Order   one thread at a time per rank; abort() from any thread
/// Throws  ShapeError for tensors that do not fit, CommunicationError as the Communicator says
class LocalBackend final : public c10d::Backend {
 public:
  explicit LocalBackend(LocalGroup group);
  ~LocalBackend() override;

  const std::string getBackendName() const override { return transport_; }
  bool supportsCoalescing() const override { return false; }
  void setTimeout(std::chrono::milliseconds timeout) override { arrival_.set_timeout(timeout); }
  void abort() override;
  void shutdown() override {}
  /// Meets all members once, at once, for groups being made.
  void meet();

  using WorkPtr = c10::intrusive_ptr<c10d::Work>;
  using Tensors = std::vector<at::Tensor>;
  WorkPtr broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) override;
  WorkPtr allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) override;
  WorkPtr allreduce_coalesced(Tensors& tensors, const c10d::AllreduceCoalescedOptions& options) override;
  WorkPtr reduce(Tensors& tensors, const c10d::ReduceOptions& options) override;
  WorkPtr allgather(std::vector<Tensors>& outputs, Tensors& inputs, const c10d::AllgatherOptions& options) override;
  WorkPtr _allgather_base(at::Tensor& output, at::Tensor& input, const c10d::AllgatherOptions& options) override;
  WorkPtr allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::AllgatherOptions& options) override;
  WorkPtr gather(std::vector<Tensors>& outputs, Tensors& inputs, const c10d::GatherOptions& options) override;
  WorkPtr scatter(Tensors& outputs, std::vector<Tensors>& inputs, const c10d::ScatterOptions& options) override;
  WorkPtr reduce_scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                         const c10d::ReduceScatterOptions& options) override;
  WorkPtr _reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                               const c10d::ReduceScatterOptions& options) override;
  WorkPtr reduce_scatter_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const c10d::ReduceScatterOptions& options) override;
  WorkPtr alltoall_base(at::Tensor& output, at::Tensor& input, std::vector<int64_t>& output_rows,
                        std::vector<int64_t>& input_rows, const c10d::AllToAllOptions& options) override;
  WorkPtr alltoall(Tensors& outputs, Tensors& inputs, const c10d::AllToAllOptions& options) override;
  WorkPtr send(Tensors& tensors, int to, int tag) override;
  WorkPtr recv(Tensors& tensors, int from, int tag) override;
  WorkPtr recvAnysource(Tensors& tensors, int tag) override;
  WorkPtr barrier(const c10d::BarrierOptions& options) override;

 private:
  friend class LocalWork;
  friend class TransferWork;

  // `keep` holds the tensors of a queued operation until it is done.
  WorkPtr run(Operation operation, bool is_async, std::initializer_list<const Tensors*> keep);
  WorkPtr reduce_scatter_pieces(Operation operation, const at::Tensor& output, const Tensors& inputs,
                                const c10d::ReduceScatterOptions& options);
  WorkPtr transfer(const at::Tensor& tensor, int peer, int tag, bool is_send);
  void check_rank(const char* operation, int64_t rank) const;

  std::string transport_;
  std::shared_ptr<Engine> engine_;
  Arrival arrival_;
  Exchange exchange_;
  PointToPoint point_to_point_;
  WorkPtr done_;
};

}  // namespace tessera::comm::detail
