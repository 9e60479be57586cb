// SPDX-License-Identifier: Apache-2.0
// Meetings on the host, waits on the streams.
#include "cuda/thread_backend.h"

#include <ATen/cuda/PeerToPeerAccess.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/scalar_tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <fmt/format.h>

#include <exception>
#include <utility>

#include "comm/reduce_kernels.h"
#include "cuda/fold.h"
#include "tessera/base/error.h"

namespace tessera::cuda {

namespace {

using comm::detail::CallKind;
using comm::detail::Operation;
using WorkPtr = c10::intrusive_ptr<c10d::Work>;
using Tensors = std::vector<at::Tensor>;

// An asynchronous collective that has been queued on the group's stream.
class StreamWork final : public c10d::Work {
 public:
  StreamWork(c10::cuda::CUDAStream stream, Tensors keep) : keep_(std::move(keep)) { finished_.record(stream); }
  bool isCompleted() override { return finished_.query(); }
  bool isSuccess() const override { return true; }
  void synchronize() override {
    finished_.block(c10::cuda::getCurrentCUDAStream(finished_.device_index()));
    keep_.clear();
  }
  bool wait(std::chrono::milliseconds) override {
    synchronize();
    return true;
  }

 private:
  at::cuda::CUDAEvent finished_;
  Tensors keep_;
};

// A receive: the parcel's number comes over the host, then the current stream copies it.
class ReceiveWork final : public c10d::Work {
 public:
  ReceiveWork(WorkPtr inner, at::Tensor number, at::Tensor target, std::shared_ptr<Mailbox> mailbox, std::string group)
      : inner_(std::move(inner)),
        number_(std::move(number)),
        target_(std::move(target)),
        mailbox_(std::move(mailbox)),
        group_(std::move(group)) {}
  bool isCompleted() override {
    if (!copied_ && inner_->isCompleted()) synchronize();
    return copied_;
  }
  bool isSuccess() const override { return copied_; }
  int sourceRank() const override { return inner_->sourceRank(); }
  void synchronize() override {
    if (copied_) return;
    inner_->wait();
    copy(mailbox_->take(number_.item<std::int64_t>()));
    copied_ = true;
  }
  bool wait(std::chrono::milliseconds) override {
    synchronize();
    return true;
  }

 private:
  void copy(Parcel parcel) const {
    const at::Tensor& sent = parcel.tensor;
    check<CommunicationError>(sent.nbytes() == target_.nbytes() && sent.scalar_type() == target_.scalar_type(),
                              "receive on group {}: the tensor has {} bytes of {}, the message {} of {}; both ends must "
                              "give the same size and dtype",
                              group_, target_.nbytes(), comm::detail::dtype_name(target_.scalar_type()), sent.nbytes(),
                              comm::detail::dtype_name(sent.scalar_type()));
    if (sent.nbytes() == 0) return;
    const c10::cuda::CUDAGuard guard(target_.device());
    const auto stream = c10::cuda::getCurrentCUDAStream(target_.device().index());
    parcel.written.block(stream);
    C10_CUDA_CHECK(
        cudaMemcpyAsync(target_.data_ptr(), sent.data_ptr(), sent.nbytes(), cudaMemcpyDefault, stream.stream()));
    sent.record_stream(stream.unwrap());
  }

  WorkPtr inner_;
  at::Tensor number_;
  at::Tensor target_;
  std::shared_ptr<Mailbox> mailbox_;
  std::string group_;
  bool copied_ = false;
};

bool reduces(CallKind kind) {
  return kind == CallKind::kAllReduce || kind == CallKind::kAllReduceCoalesced || kind == CallKind::kReduce ||
         kind == CallKind::kReduceScatter;
}

void wait_for(c10::cuda::CUDAStream stream, const at::cuda::CUDAEvent& event) {
  C10_CUDA_CHECK(cudaStreamWaitEvent(stream.stream(), event.event(), 0));
}

// Events come into being, with handles that stay, when they are recorded first.
std::shared_ptr<at::cuda::CUDAEvent> make_event(c10::cuda::CUDAStream stream) {
  auto event = std::make_shared<at::cuda::CUDAEvent>();
  event->record(stream);
  return event;
}

}  // namespace

ThreadBackend::ThreadBackend(const comm::GroupRequest& request)
    : OperationBackend(request.rank, static_cast<int>(request.members.size()), request.name, request.device),
      host_(request.host),
      side_stream_(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, request.device.index())),
      address_(at::empty({1}, at::kLong)),
      addresses_(at::empty({size_}, at::kLong)) {
  check<ConfigError>(size_ <= kMaxRanks, "group {}: {} ranks are threads on GPUs; allowed are up to {}", request.name,
                     size_, kMaxRanks);
  join(request);
  check_access();
}

void ThreadBackend::join(const comm::GroupRequest& request) {
  const c10::cuda::CUDAGuard guard(request.device);
  const Member mine{.ready = make_event(side_stream_),
                    .done = make_event(side_stream_),
                    .device = request.device.index(),
                    .mailbox = rank_ == 0 ? std::make_shared<Mailbox>() : nullptr};
  for (const void* member : show(&mine)) members_.push_back(*static_cast<const Member*>(member));
  mailbox_ = members_.front().mailbox;
  meet();
}

void ThreadBackend::check_access() const {
  for (const Member& member : members_) {
    if (member.device == device().index()) continue;
    check<ConfigError>(at::cuda::get_p2p_access(device().index(), member.device),
                       "group {}: GPU {} cannot read the memory of GPU {}; let the ranks share one GPU "
                       "(CUDA_VISIBLE_DEVICES), or make them processes with --ranks processes",
                       group(), device().index(), member.device);
  }
}

std::vector<const void*> ThreadBackend::show(const void* pointer) {
  *address_.data_ptr<std::int64_t>() = static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(pointer));
  c10d::AllgatherOptions options;
  options.asyncOp = false;
  host_->_allgather_base(addresses_, address_, options)->wait();
  std::vector<const void*> pointers;
  for (int r = 0; r < size_; ++r) {
    const std::int64_t address = addresses_.data_ptr<std::int64_t>()[r];
    pointers.push_back(reinterpret_cast<const void*>(static_cast<std::intptr_t>(address)));
  }
  return pointers;
}

void ThreadBackend::meet() {
  c10d::BarrierOptions options;
  options.asyncOp = false;
  host_->barrier(options)->wait();
}

WorkPtr ThreadBackend::run(Operation operation, bool is_async, std::initializer_list<const Tensors*> keep) {
  // Refuses what has no kernel before the peers are met.
  if (reduces(operation.call.kind)) {
    static_cast<void>(comm::detail::find_fold_kernel(operation.call.dtype, operation.call.op));
  }
  const c10::cuda::CUDAGuard guard(device());
  const auto current = c10::cuda::getCurrentCUDAStream(device().index());
  const c10::cuda::CUDAStream stream = is_async ? side_stream_ : current;
  operation_ = std::move(operation);
  me().ready->record(current);
  try {
    run_on(stream);
  } catch (const CommunicationError& error) {
    throw CommunicationError(
        fmt::format("{} of group {} on {}: {}", describe(operation_.call), group(), device().str(), error.what()));
  }
  if (!is_async) return done();
  Tensors kept;
  for (const Tensors* tensors : keep) kept.insert(kept.end(), tensors->begin(), tensors->end());
  // Should nobody wait, the allocator must know who still uses the memory.
  for (const at::Tensor& tensor : kept) tensor.record_stream(stream.unwrap());
  return c10::make_intrusive<StreamWork>(stream, std::move(kept));
}

void ThreadBackend::run_on(c10::cuda::CUDAStream stream) {
  Round round{.operations = {}, .rank = rank_, .group = group()};
  for (const void* shown : show(&operation_)) round.operations.push_back(static_cast<const Operation*>(shown));
  std::exception_ptr failure;
  try {
    check_round(round);
    for (const Member& member : members_) wait_for(stream, *member.ready);
    enqueue(round, stream.stream());
    me().done->record(stream);
  } catch (...) {
    failure = std::current_exception();
  }
  // Even in failure: peers still read what this rank has shown.
  meet();
  if (failure) std::rethrow_exception(failure);
  for (const Member& member : members_) wait_for(stream, *member.done);
}

WorkPtr ThreadBackend::transfer(comm::detail::Message message) {
  return message.direction == comm::detail::Direction::kSend ? send_parcel(message) : receive_parcel(std::move(message));
}

WorkPtr ThreadBackend::send_parcel(const comm::detail::Message& message) {
  const c10::cuda::CUDAGuard guard(device());
  Parcel parcel{.tensor = message.tensor.detach().clone(), .written = {}};
  parcel.written.record(c10::cuda::getCurrentCUDAStream(device().index()));
  Tensors number{at::scalar_tensor(mailbox_->put(std::move(parcel)), at::kLong)};
  return host_->send(number, message.peer, message.tag);
}

WorkPtr ThreadBackend::receive_parcel(comm::detail::Message message) {
  Tensors number{at::empty({}, at::kLong)};
  WorkPtr inner = message.peer == kAnyRank ? host_->recvAnysource(number, message.tag)
                                           : host_->recv(number, message.peer, message.tag);
  return c10::make_intrusive<ReceiveWork>(std::move(inner), number.front(), std::move(message.tensor), mailbox_,
                                          group());
}

c10::intrusive_ptr<c10d::Backend> make_thread_backend(const comm::GroupRequest& request) {
  return c10::make_intrusive<ThreadBackend>(request);
}

}  // namespace tessera::cuda
