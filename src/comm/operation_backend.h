// SPDX-License-Identifier: Apache-2.0
// The c10d face that the thread, shm and CUDA thread transports share: tensors in, one operation over bytes out.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <cstdint>
#include <string>
#include <vector>

#include "comm/collectives.h"

namespace tessera::comm::detail {

enum class Direction : std::uint8_t { kSend, kReceive };
/// "send", "receive".
[[nodiscard]] const char* name_of(Direction direction);

/// One checked message of a point-to-point call.
struct Message {
  Direction direction = Direction::kSend;
  at::Tensor tensor;
  /// The bytes of `tensor`.
  Piece piece;
  int peer = 0;
  int tag = 0;
  std::uint64_t epoch = 0;
};

/// Checks tensors and turns every collective of c10d into an Operation, which a transport carries out.
///
/// Inputs  contiguous tensors on `device`
/// Throws  ShapeError for tensors that do not fit
class OperationBackend : public c10d::Backend {
 public:
  using WorkPtr = c10::intrusive_ptr<c10d::Work>;
  using Tensors = std::vector<at::Tensor>;

  bool supportsCoalescing() const override { return false; }
  void shutdown() override {}

  /// Of messages from now on; see comm/epoch.h.
  void set_epoch(std::uint64_t epoch) { epoch_ = epoch; }
  /// False: this transport knows no epochs.
  virtual bool start_epoch(std::uint64_t /*epoch*/, bool /*tell_peers*/) { return false; }

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

 protected:
  /// The peer of a receive from whoever comes first.
  static constexpr int kAnyRank = -1;

  OperationBackend(int rank, int size, std::string group, c10::Device device);

  /// Carries out `operation`, at the latest when somebody waits for the work; if not `is_async`, before it returns.
  /// `keep` are tensors that must live until then.
  virtual WorkPtr run(Operation operation, bool is_async, std::initializer_list<const Tensors*> keep) = 0;
  virtual WorkPtr transfer(Message message) = 0;

  [[nodiscard]] const std::string& group() const { return group_; }
  [[nodiscard]] c10::Device device() const { return device_; }
  /// The work of everything that is over when its call returns.
  [[nodiscard]] const WorkPtr& done() const { return done_; }

 private:
  WorkPtr reduce_scatter_pieces(Operation operation, const at::Tensor& output, const Tensors& inputs,
                                const c10d::ReduceScatterOptions& options);
  WorkPtr checked_transfer(Direction direction, const Tensors& tensors, int peer, int tag);
  void check_rank(const char* operation, int64_t rank) const;
  Piece checked_piece(const char* operation, const at::Tensor& tensor) const;
  Pieces split_evenly(const char* operation, const at::Tensor& tensor, std::size_t piece_bytes) const;
  Pieces list_of(const char* operation, const Tensors& tensors, std::size_t piece_bytes) const;
  Pieces split_rows(const char* operation, const at::Tensor& tensor, const std::vector<int64_t>& rows) const;

  WorkPtr done_;
  std::string group_;
  c10::Device device_;
  std::uint64_t epoch_ = 0;
};

}  // namespace tessera::comm::detail
