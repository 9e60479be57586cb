// SPDX-License-Identifier: Apache-2.0
// The two machine-local transports of host memory: operations are queued and run over the group's region.
#pragma once

#include <memory>
#include <string>

#include "comm/operation_backend.h"
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
class LocalBackend final : public OperationBackend {
 public:
  explicit LocalBackend(LocalGroup group);
  ~LocalBackend() override;

  const std::string getBackendName() const override { return transport_; }
  void setTimeout(std::chrono::milliseconds timeout) override { arrival_.set_timeout(timeout); }
  void abort() override;
  bool start_epoch(std::uint64_t epoch, bool tell_peers) override;
  /// Meets all members once, at once, for groups being made.
  void meet();

 private:
  friend class LocalWork;
  friend class TransferWork;

  WorkPtr run(Operation operation, bool is_async, std::initializer_list<const Tensors*> keep) override;
  WorkPtr transfer(Message message) override;

  std::string transport_;
  std::shared_ptr<Engine> engine_;
  Arrival arrival_;
  Exchange exchange_;
  PointToPoint point_to_point_;
};

}  // namespace tessera::comm::detail
