// SPDX-License-Identifier: Apache-2.0
// Runs operations at once or queues them in the rank's engine.
#include "comm/local_backend.h"

#include <utility>

namespace tessera::comm::detail {

using Tensors = OperationBackend::Tensors;

// A collective in the engine's queue.
class LocalWork final : public c10d::Work {
 public:
  class Queued final : public Task {
   public:
    Queued(c10::intrusive_ptr<LocalBackend> backend, Operation operation, Tensors keep)
        : backend_(std::move(backend)), operation_(std::move(operation)), keep_(std::move(keep)) {}
    void run() override {
      run_collective(backend_->exchange_, operation_);
      keep_.clear();
    }
    [[nodiscard]] Engine& engine() const { return *backend_->engine_; }

   private:
    c10::intrusive_ptr<LocalBackend> backend_;
    Operation operation_;
    Tensors keep_;
  };

  explicit LocalWork(std::shared_ptr<Queued> task) : task_(std::move(task)) {}
  bool isCompleted() override { return task_->done; }
  bool isSuccess() const override { return task_->done && !task_->error; }
  std::exception_ptr exception() const override { return task_->error; }
  void synchronize() override { task_->engine().drain_through(*task_); }
  bool wait(std::chrono::milliseconds) override {
    synchronize();
    return true;
  }

 private:
  std::shared_ptr<Queued> task_;
};

// A send or receive under way. The rank's posted collectives come first, lest a peer wait for them forever.
class TransferWork final : public c10d::Work {
 public:
  TransferWork(c10::intrusive_ptr<LocalBackend> backend, std::shared_ptr<Transfer> transfer, const char* operation)
      : backend_(std::move(backend)), transfer_(std::move(transfer)), operation_(operation) {}
  bool isCompleted() override {
    backend_->engine_->progress();
    return transfer_->complete;
  }
  bool isSuccess() const override { return transfer_->complete && !transfer_->error; }
  std::exception_ptr exception() const override { return transfer_->error; }
  int sourceRank() const override { return transfer_->peer; }
  void synchronize() override {
    backend_->engine_->progress();
    if (!transfer_->complete) backend_->engine_->drain();
    backend_->point_to_point_.wait(*transfer_, operation_);
  }
  bool wait(std::chrono::milliseconds) override {
    synchronize();
    return true;
  }

 private:
  c10::intrusive_ptr<LocalBackend> backend_;
  std::shared_ptr<Transfer> transfer_;
  const char* operation_;
};

LocalBackend::LocalBackend(LocalGroup group)
    : OperationBackend(group.rank, group.region.shape().size, group.arrival.group, c10::kCPU),
      transport_(std::move(group.transport)),
      engine_(std::move(group.engine)),
      arrival_(std::move(group.region), group.rank, std::move(group.arrival), engine_),
      exchange_(arrival_, group.reach),
      point_to_point_(arrival_, group.reach, engine_) {}

LocalBackend::~LocalBackend() = default;

void LocalBackend::abort() {
  poison(arrival_.region(), "group " + arrival_.group() + ": aborted by rank " + std::to_string(rank_));
}

bool LocalBackend::start_epoch(std::uint64_t epoch, bool tell_peers) {
  point_to_point_.start_epoch(epoch);
  if (tell_peers) point_to_point_.tell_epoch();
  return true;
}

void LocalBackend::meet() {
  run_collective(exchange_, {.call = {.kind = CallKind::kBarrier}, .inputs = {}, .outputs = {}});
}

LocalBackend::WorkPtr LocalBackend::run(Operation operation, bool is_async,
                                        std::initializer_list<const Tensors*> keep) {
  if (!is_async) {
    engine_->drain();
    run_collective(exchange_, operation);
    return done();
  }
  Tensors kept;
  for (const Tensors* tensors : keep) kept.insert(kept.end(), tensors->begin(), tensors->end());
  auto self = c10::intrusive_ptr<LocalBackend>::unsafe_reclaim_from_nonowning(this);
  auto task = std::make_shared<LocalWork::Queued>(std::move(self), std::move(operation), std::move(kept));
  engine_->post(task);
  return c10::make_intrusive<LocalWork>(std::move(task));
}

LocalBackend::WorkPtr LocalBackend::transfer(Message message) {
  static_assert(kAnyRank == Transfer::kAnyRank);
  arrival_.throw_if_poisoned();
  auto transfer = std::make_shared<Transfer>();
  transfer->peer = message.peer;
  transfer->tag = message.tag;
  transfer->epoch = message.epoch;
  transfer->piece = message.piece;
  transfer->dtype = message.tensor.scalar_type();
  transfer->keep = std::make_shared<at::Tensor>(std::move(message.tensor));
  const bool is_send = message.direction == Direction::kSend;
  is_send ? point_to_point_.post_send(transfer) : point_to_point_.post_receive(transfer);
  auto self = c10::intrusive_ptr<LocalBackend>::unsafe_reclaim_from_nonowning(this);
  return c10::make_intrusive<TransferWork>(std::move(self), std::move(transfer), name_of(message.direction));
}

}  // namespace tessera::comm::detail
