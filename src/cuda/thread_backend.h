// SPDX-License-Identifier: Apache-2.0
// Ranks as threads on GPUs: peers' device memory is read in place, in an order that events keep.
#pragma once

#include <ATen/cuda/CUDAEvent.h>
#include <c10/cuda/CUDAStream.h>

#include <memory>
#include <string>
#include <vector>

#include "comm/operation_backend.h"
#include "cuda/device_collectives.h"
#include "cuda/mailbox.h"
#include "tessera/comm/worlds.h"

namespace tessera::cuda {

/// A collective meets twice on the host and never waits for the device:
///   1. each rank records `ready` on its stream, and all meet and see each other's operations
///   2. each rank's stream waits for all `ready`, then copies or folds, then records `done`
///   3. all meet again, and each rank's stream waits for all `done`: nobody's memory changes while a peer reads it
///
/// Synchronous calls work on the caller's current stream; asynchronous ones on a stream of the group's own, which the
/// current stream waits for in Work::wait(). A message is copied at its sender, whose tensor is free at once.
///
/// Inputs  contiguous tensors on the rank's GPU
/// Order   one thread per rank; abort() from any thread. Not inside a CUDA graph: the host takes part
/// Throws  ShapeError for tensors that do not fit; CommunicationError as the Communicator says
class ThreadBackend final : public comm::detail::OperationBackend {
 public:
  /// Collective. Throws ConfigError for more than 64 ranks, and when two GPUs cannot read each other's memory
  explicit ThreadBackend(const comm::GroupRequest& request);

  const std::string getBackendName() const override { return "thread"; }
  void setTimeout(std::chrono::milliseconds timeout) override { host_->setTimeout(timeout); }
  void abort() override { host_->abort(); }

 private:
  // What a rank's end of the group shows its peers. They may wait for its events when it is gone.
  struct Member {
    std::shared_ptr<at::cuda::CUDAEvent> ready;
    std::shared_ptr<at::cuda::CUDAEvent> done;
    c10::DeviceIndex device = 0;
    std::shared_ptr<Mailbox> mailbox;
  };

  WorkPtr run(comm::detail::Operation operation, bool is_async, std::initializer_list<const Tensors*> keep) override;
  WorkPtr transfer(comm::detail::Message message) override;

  void join(const comm::GroupRequest& request);
  void check_access() const;
  std::vector<const void*> show(const void* pointer);
  void meet();
  [[nodiscard]] const Member& me() const { return members_[static_cast<std::size_t>(rank_)]; }
  void run_on(c10::cuda::CUDAStream stream);
  WorkPtr send_parcel(const comm::detail::Message& message);
  WorkPtr receive_parcel(comm::detail::Message message);

  c10::intrusive_ptr<c10d::Backend> host_;
  c10::cuda::CUDAStream side_stream_;
  std::vector<Member> members_;
  std::shared_ptr<Mailbox> mailbox_;
  // Of the call under way; peers read it between its two meetings.
  comm::detail::Operation operation_;
  // One address, and those of all ranks.
  at::Tensor address_;
  at::Tensor addresses_;
};

/// For WorldOptions::makers.
[[nodiscard]] c10::intrusive_ptr<c10d::Backend> make_thread_backend(const comm::GroupRequest& request);

}  // namespace tessera::cuda
