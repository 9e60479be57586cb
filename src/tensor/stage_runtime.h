// SPDX-License-Identifier: Apache-2.0
// What moves between pipeline stages: tensors, shapes and numbers.
#pragma once

#include <compare>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tensor/call_shape.h"
#include "tensor/deferred.h"
#include "tensor/microbatch.h"
#include "tensor/stage_map.h"
#include "tessera/base/error.h"
#include "tessera/comm/communicator.h"
#include "tessera/tensor/stages.h"

namespace tessera::tensor {

class Journal;

/// A step in schedule order met what has to be learned outside of it. All ranks of the pipeline meet it, or wait for one
/// that has.
class NewInSchedule : public ShapeError {
 public:
  using ShapeError::ShapeError;
};

/// One rank's part in moving things between the stages of one mesh. Without stages it does nothing.
class StageRuntime {
 public:
  explicit StageRuntime(const Mesh& mesh) : map_(mesh) {}
  /// What was sent arrives, though this rank is done: without error under way, waits for it.
  ~StageRuntime();
  StageRuntime(const StageRuntime&) = delete;
  StageRuntime& operator=(const StageRuntime&) = delete;

  /// Index of axis pp; -1 if there are no stages.
  [[nodiscard]] int axis() const noexcept { return map_.axis(); }
  [[nodiscard]] const StageMap& map() const noexcept { return map_; }
  void set_map(const Mesh& mesh, const std::vector<int>& rank_of_stage);
  [[nodiscard]] const StageTraffic& traffic() const noexcept { return traffic_; }

  /// A step begins, on all ranks: messages reach only ranks in the same step whose last failure is the same.
  /// `again`: the step that failed last runs a second time.
  /// Throws  CommunicationError after a failed step, where the transport would take old messages for new ones
  void begin_step(const Mesh& mesh, bool again = false);
  /// The step ends by an exception, and may do so elsewhere on other ranks: those that wait for this one fail when it
  /// begins the next. What it sent is no longer waited for, and copies on other stages are forgotten, since ranks may
  /// differ in which they made.
  void fail_step(const Mesh& mesh);
  /// Number of the last step that failed, or of its second run; 0: none did.
  [[nodiscard]] std::uint32_t last_failure() const noexcept { return last_failure_; }
  /// Of the step in progress, or the last one: even, but odd for a second run.
  [[nodiscard]] std::uint32_t step_number() const noexcept { return steps_; }
  /// Ranks that wait for one that gave up hear of it, so that all can run a step again.
  [[nodiscard]] bool can_run_again() const noexcept { return knows_epochs_; }
  /// A peer in that epoch runs the step again that failed here.
  [[nodiscard]] bool runs_again(std::uint64_t epoch_of_peer) const noexcept { return epoch_of_peer >> 32U == steps_ + 1; }

  /// Where operators of forward ran.
  [[nodiscard]] ForwardStages& forward() noexcept { return microbatch_->forward; }
  [[nodiscard]] ForwardOrder& forward_order() noexcept { return microbatch_->order; }

  /// From now on calls belong to `microbatch`, or to none if it is null. Returns what they belonged to.
  Microbatch* enter(Microbatch* microbatch) noexcept {
    Microbatch* before = microbatch_ == &outside_ ? nullptr : microbatch_;
    microbatch_ = microbatch == nullptr ? &outside_ : microbatch;
    return before;
  }

  /// A pipeline schedule in progress on this rank.
  struct Conductor {
    /// Called before this rank computes a call that runs on `stages`, one of them its own; comes back when it is time.
    std::function<void(StageSet stages)> await_turn;
    /// True: ranks run micro-batches in different orders, so that none may wait for shapes that another has to tell.
    bool in_schedule_order = false;
    /// Where gradients of weights wait that need not be computed now; null: none wait.
    DeferredQueue* deferred = nullptr;
    /// Gets what the step changes; null: it will not be taken back.
    Journal* journal = nullptr;
  };
  void set_conductor(Conductor conductor) { conductor_ = std::move(conductor); }
  [[nodiscard]] const Conductor& conductor() const noexcept { return conductor_; }
  void set_deferred(DeferredQueue* queue) noexcept { conductor_.deferred = queue; }

  /// What was seen of a step that a pipeline schedule has to know, as operators' names; empty: not seen.
  struct Hindrances {
    std::string goes_back;         ///< forward computed it with what is made, or sent, on a later stage
    std::string tells_in_forward;  ///< gave numbers or sizes that others had to be told
    std::string tells_in_backward;
  };
  [[nodiscard]] Hindrances& hindrances() noexcept { return hindrances_; }

  /// Makes a tensor lie on `stages` besides where it lies. Its storage remembers, until the tensor is written.
  void bring(const at::Tensor& tensor, StageSet stages);
  /// Undoes bring: the tensor lies where it lay.
  void forget_copies(const at::Tensor& tensor) const;
  /// `local`, a shard of `local_sizes` that lies on stages `from`, on stages `to` as well; where it does not come to,
  /// as it was. Dims lie in `order` there.
  [[nodiscard]] at::Tensor moved(const at::Tensor& local, at::IntArrayRef local_sizes, const DimOrder& order,
                                 StageSet from, StageSet to, const Mesh& mesh);

  /// The shape that is known for calls of this key; null: new.
  [[nodiscard]] std::shared_ptr<const CallShape> known_shape(std::uint64_t key) const;
  /// Tells everybody along axis pp what `shape` is, and remembers it. Called by the first rank that computes.
  void tell_shape(std::uint64_t key, std::shared_ptr<const CallShape> shape, const Mesh& mesh);
  /// The other side of tell_shape, of a call that was computed on `stages`.
  [[nodiscard]] std::shared_ptr<const CallShape> learn_shape(std::uint64_t key, StageSet stages, const Mesh& mesh);
  /// In place of the shape: the call failed. learn_shape throws it, an error of LibTorch if it was one.
  void tell_failure(std::uint64_t key, const std::exception_ptr& failure, const Mesh& mesh);
  /// The same for what differs from call to call.
  void tell_values(const CallShape& shape, const Mesh& mesh);
  [[nodiscard]] CallShape learn_values(StageSet stages, const Mesh& mesh);

  /// Waits until nobody reads `memory` any more: it is about to be written.
  void finish_sends_of(const at::Tensor& memory);
  /// Waits until all that was sent has arrived.
  void finish_sends();
  /// Moves what is on its way, without waiting.
  void progress();

 private:
  using Message = std::vector<std::int64_t>;
  struct Outgoing {
    at::Tensor memory;
    comm::Pending pending;
    bool abandoned = false;
  };

  /// All ranks count the same events of a micro-batch in the same order: that names messages.
  [[nodiscard]] int next_tag() noexcept;
  /// Names a span of time in which ranks agree; grows.
  [[nodiscard]] std::uint64_t epoch() const noexcept;
  void start_epoch(const Mesh& mesh, bool tell_peers);
  void refuse_old_messages() const;
  void send(const at::Tensor& memory, int to, int tag, std::uint64_t epoch, const Mesh& mesh);
  void receive(at::Tensor& memory, int from, int tag, std::uint64_t epoch, const Mesh& mesh) const;
  /// What a message is about. A shape that was told once is true for ever: its epoch is 0.
  struct Subject {
    std::uint64_t epoch = 0;
    std::uint64_t id = 0;
    auto operator<=>(const Subject&) const = default;
  };
  [[nodiscard]] Subject next_values() noexcept { return {epoch(), static_cast<std::uint64_t>(next_tag())}; }
  void tell(const Subject& subject, const CallShape& shape, const Mesh& mesh);
  void post(const Message& message, std::uint64_t epoch, const Mesh& mesh);
  [[nodiscard]] CallShape learn(const Subject& subject, int from, const Mesh& mesh);
  [[nodiscard]] Message receive_message(int from, std::uint64_t epoch, const Mesh& mesh) const;

  StageMap map_;
  StageTraffic traffic_;
  Microbatch outside_;
  Microbatch* microbatch_ = &outside_;
  Conductor conductor_;
  Hindrances hindrances_;
  std::deque<Outgoing> outgoing_;
  std::unordered_map<std::uint64_t, std::shared_ptr<const CallShape>> shapes_;
  /// Messages that came before anybody asked for them, by sender and subject.
  std::map<std::pair<int, Subject>, std::deque<Message>> mailbox_;
  std::uint32_t steps_ = 1;
  std::uint32_t last_failure_ = 0;
  bool failed_ = false;  ///< and no step began since
  /// The transport tells messages of different epochs apart.
  bool knows_epochs_ = true;
};

}  // namespace tessera::tensor
