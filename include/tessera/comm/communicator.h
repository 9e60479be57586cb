// SPDX-License-Identifier: Apache-2.0
// Value handle to one group of ranks, and the collectives that the tensor floor is written in.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/intrusive_ptr.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace c10d {
class Backend;
class Work;
}  // namespace c10d

namespace tessera::comm {

enum class ReduceOp : std::uint8_t { kSum, kAvg, kMax, kMin, kProduct };

/// Totals since the communicator was made, for tests of closed forms and for `comm_bytes` in reports.
/// `bytes` counts the payload this rank hands to collectives: the larger of its input and output buffers.
/// `exposed_ms` is the time this rank's thread spent inside collectives and waits: communication that hid behind
/// nothing.
struct Traffic {
  std::int64_t calls = 0;
  std::int64_t bytes = 0;
  double exposed_ms = 0;
};

/// An asynchronous collective under way. wait() returns when the result may be read by this rank's next operation
/// (on CUDA: ordered on the current stream). Destroying an unwaited handle is allowed; the collective still happens.
class Pending {
 public:
  Pending() = default;
  /// `traffic`, if given, is credited with the time spent waiting.
  explicit Pending(c10::intrusive_ptr<c10d::Work> work, std::shared_ptr<Traffic> traffic = nullptr);
  ~Pending();
  Pending(Pending&&) noexcept;
  Pending& operator=(Pending&&) noexcept;
  Pending(const Pending&);
  Pending& operator=(const Pending&);
  void wait();
  /// True if wait() would return at once. Moves what can be moved meanwhile, and never blocks.
  [[nodiscard]] bool finished() const;

 private:
  c10::intrusive_ptr<c10d::Work> work_;
  std::shared_ptr<Traffic> traffic_;
};

/// Handle to a group of ranks; copies refer to the same group. A group of one never touches a backend, counts no
/// traffic, and where a new tensor would be returned it returns the input itself.
///
/// Order     every member calls the same collectives in the same order, from one thread at a time.
/// Inputs    local tensors (never mesh tensors), any strides, any size including zero. bool reduces as "or" (sum, max)
///           and "and" (product, min); avg of integers rounds towards zero, avg of bool is a ShapeError.
/// Bits      the thread and shm transports fold in rank order, 16-bit floats in float32: ranks as threads, ranks as
///           processes and repeated runs give the same bits.
/// Throws    CommunicationError naming the group, operation, sequence number and rank when a peer fails, disagrees or
///           the group's deadline passes.
class Communicator {
 public:
  /// The group of one.
  Communicator();
  /// Wraps any c10d backend, a user's own too; null makes the group of one. `name` appears in messages, for instance
  /// "tp".
  Communicator(c10::intrusive_ptr<c10d::Backend> backend, std::string name);

  [[nodiscard]] int rank() const noexcept { return rank_; }
  [[nodiscard]] int size() const noexcept { return size_; }
  [[nodiscard]] const std::string& name() const noexcept;
  [[nodiscard]] const Traffic& traffic() const noexcept;
  /// Null for a group of one.
  [[nodiscard]] const c10::intrusive_ptr<c10d::Backend>& backend() const noexcept;

  /// Reduction over the ranks, in place.
  void all_reduce(at::Tensor& tensor, ReduceOp op = ReduceOp::kSum) const;
  /// The same for several tensors as one collective (one dtype): how gradient buckets travel. Returns at once; the
  /// tensors must stay untouched until wait(). On the thread and shm transports the work is done while the rank waits
  /// for it or calls any later collective.
  [[nodiscard]] Pending all_reduce_coalesced(std::vector<at::Tensor> tensors, ReduceOp op = ReduceOp::kSum) const;
  /// [n, ...] on every rank -> [size * n, ...], rank-major along dim 0. Same n everywhere.
  [[nodiscard]] at::Tensor all_gather(const at::Tensor& tensor) const;
  /// The same without waiting: wait() fills `output` (contiguous, [size * n, ...]). Both stay untouched until then.
  [[nodiscard]] Pending post_all_gather(const at::Tensor& tensor, at::Tensor& output) const;
  /// [size * n, ...] -> rank r's [n, ...] slice of the reduction over ranks.
  [[nodiscard]] at::Tensor reduce_scatter(const at::Tensor& tensor, ReduceOp op = ReduceOp::kSum) const;
  /// The same without waiting: wait() fills `output` (contiguous, [n, ...]). Both stay untouched until then.
  [[nodiscard]] Pending post_reduce_scatter(const at::Tensor& tensor, at::Tensor& output,
                                            ReduceOp op = ReduceOp::kSum) const;
  /// Rows [splits...] of `tensor` go to ranks 0..size-1; returns the rows received, rank-major.
  [[nodiscard]] at::Tensor all_to_all(const at::Tensor& tensor, const std::vector<std::int64_t>& send_rows,
                                      const std::vector<std::int64_t>& receive_rows) const;
  /// `tensor` of `root` overwrites everyone's.
  void broadcast(at::Tensor& tensor, int root) const;
  /// Messages of one pair of ranks with one tag arrive in order; `tag` tells others apart. The receiver's tensor has
  /// the size and dtype of the sender's.
  void send(const at::Tensor& tensor, int to, int tag = 0) const;
  void receive(at::Tensor& tensor, int from, int tag = 0) const;
  /// The same without waiting, in any order between two ranks. The tensor stays untouched (and, when receiving, is
  /// contiguous) until wait().
  [[nodiscard]] Pending post_send(const at::Tensor& tensor, int to, int tag = 0) const;
  [[nodiscard]] Pending post_receive(at::Tensor& tensor, int from, int tag = 0) const;
  void barrier() const;

 private:
  void check_rows(const at::Tensor& tensor) const;

  struct State;
  std::shared_ptr<State> state_;
  int rank_ = 0;
  int size_ = 1;
};

}  // namespace tessera::comm
