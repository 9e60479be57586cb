// SPDX-License-Identifier: Apache-2.0
// Communicator over any c10d backend: contiguous copies, bool as bytes, complex numbers as pairs, errors with names,
// traffic.
#include "tessera/comm/communicator.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/view_as_real.h>
#include <fmt/format.h>

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <string_view>
#include <utility>

#include "comm/operation_backend.h"
#include "tessera/base/error.h"

namespace tessera::comm {

namespace {

c10d::ReduceOp to_c10d(ReduceOp op) {
  switch (op) {
    case ReduceOp::kSum:
      return c10d::ReduceOp::SUM;
    case ReduceOp::kAvg:
      return c10d::ReduceOp::AVG;
    case ReduceOp::kMax:
      return c10d::ReduceOp::MAX;
    case ReduceOp::kMin:
      return c10d::ReduceOp::MIN;
    case ReduceOp::kProduct:
      return c10d::ReduceOp::PRODUCT;
  }
  throw ShapeError("reduction: unknown ReduceOp");
}

// What a reduction of bool means on bytes that are 0 or 1.
ReduceOp on_bytes(ReduceOp op) {
  check<ShapeError>(op != ReduceOp::kAvg, "reduction: the average of bool is not a bool; cast the tensor first");
  return op == ReduceOp::kSum || op == ReduceOp::kMax ? ReduceOp::kMax : ReduceOp::kMin;
}

// What a reduction of complex numbers means on pairs of real ones.
ReduceOp on_pairs(ReduceOp op) {
  check<ShapeError>(op == ReduceOp::kSum || op == ReduceOp::kAvg,
                    "reduction: complex numbers can be summed and averaged only; gather them and reduce what comes");
  return op;
}

// The reduction of what carried() gives.
ReduceOp carried(ReduceOp op, c10::ScalarType dtype) {
  if (dtype == at::kBool) return on_bytes(op);
  return c10::isComplexType(dtype) ? on_pairs(op) : op;
}

// The same memory in a dtype that every backend moves: bool as bytes, complex numbers as pairs of real ones.
at::Tensor carried(const at::Tensor& tensor) {
  if (tensor.scalar_type() == at::kBool) return tensor.view(at::kByte);
  return tensor.is_complex() ? at::view_as_real(tensor) : tensor;
}

// Memory is what the tensor shows: contiguous, and nothing is left to be conjugated or negated.
bool is_plain(const at::Tensor& tensor) { return tensor.is_contiguous() && !tensor.is_conj() && !tensor.is_neg(); }

// The tensor itself if it is plain, else a copy.
at::Tensor plain(const at::Tensor& tensor) {
  return is_plain(tensor) ? tensor : tensor.resolve_conj().resolve_neg().contiguous();
}

std::int64_t nbytes(const at::Tensor& tensor) { return static_cast<std::int64_t>(tensor.nbytes()); }

// [n, ...] -> [rows, ...].
at::Tensor empty_with_rows(const at::Tensor& like, std::int64_t rows) {
  std::vector<std::int64_t> sizes = like.sizes().vec();
  sizes[0] = rows;
  return at::empty(sizes, like.options().requires_grad(false));
}

// Torch's errors carry a stack trace from the second line on.
std::string first_line(const char* text) {
  const std::string_view view(text);
  return std::string(view.substr(0, view.find('\n')));
}

// Credits the time of its scope to `traffic`.
class ExposedTime {
 public:
  explicit ExposedTime(Traffic* traffic) : traffic_(traffic), start_(std::chrono::steady_clock::now()) {}
  ~ExposedTime() {
    const std::chrono::duration<double, std::milli> elapsed = std::chrono::steady_clock::now() - start_;
    if (traffic_ != nullptr) traffic_->exposed_ms += elapsed.count();
  }
  ExposedTime(const ExposedTime&) = delete;
  ExposedTime& operator=(const ExposedTime&) = delete;

 private:
  Traffic* traffic_;
  std::chrono::steady_clock::time_point start_;
};

// Copies results back into the caller's non-contiguous tensors once they are there.
class CopyBackWork final : public c10d::Work {
 public:
  CopyBackWork(c10::intrusive_ptr<c10d::Work> inner, std::vector<std::pair<at::Tensor, at::Tensor>> copies)
      : inner_(std::move(inner)), copies_(std::move(copies)) {}
  bool isCompleted() override { return copies_.empty() && inner_->isCompleted(); }
  bool isSuccess() const override { return inner_->isSuccess(); }
  std::exception_ptr exception() const override { return inner_->exception(); }
  bool wait(std::chrono::milliseconds timeout) override {
    const bool result = inner_->wait(timeout);
    for (auto& [target, source] : copies_) target.copy_(source);
    copies_.clear();
    return result;
  }

 private:
  c10::intrusive_ptr<c10d::Work> inner_;
  std::vector<std::pair<at::Tensor, at::Tensor>> copies_;
};

}  // namespace

Pending::Pending(c10::intrusive_ptr<c10d::Work> work, std::shared_ptr<Traffic> traffic)
    : work_(std::move(work)), traffic_(std::move(traffic)) {}
Pending::~Pending() = default;
Pending::Pending(Pending&&) noexcept = default;
Pending& Pending::operator=(Pending&&) noexcept = default;
Pending::Pending(const Pending&) = default;
Pending& Pending::operator=(const Pending&) = default;

void Pending::wait() {
  if (!work_) return;
  const c10::intrusive_ptr<c10d::Work> work = std::exchange(work_, {});
  const ExposedTime exposed(traffic_.get());
  try {
    work->wait();
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw CommunicationError(fmt::format("wait for an asynchronous collective: {}", first_line(error.what())));
  }
}

bool Pending::finished() const { return !work_ || work_->isCompleted(); }

struct Communicator::State {
  c10::intrusive_ptr<c10d::Backend> backend;
  std::string name;
  std::shared_ptr<Traffic> traffic = std::make_shared<Traffic>();
  // Other engines refuse empty messages, which need no traffic anyway.
  bool moves_empty = false;

  void count(std::int64_t bytes) {
    ++traffic->calls;
    traffic->bytes += bytes;
  }

  [[nodiscard]] bool skips(std::int64_t bytes) const { return bytes == 0 && !moves_empty; }

  // Runs `call` and gives foreign errors a name.
  template <class Call>
  auto guarded(const char* operation, Call&& call) const {
    try {
      return call();
    } catch (const Error&) {
      throw;
    } catch (const std::exception& error) {
      throw CommunicationError(fmt::format("{}, call {} of group {} (rank {} of {}): {}", operation, traffic->calls,
                                           name, backend->getRank(), backend->getSize(), first_line(error.what())));
    }
  }

  // One call of the backend, to its end.
  template <class Call>
  void run(const char* operation, Call&& call) const {
    const ExposedTime exposed(traffic.get());
    guarded(operation, [&] {
      const c10::intrusive_ptr<c10d::Work> work = call();
      if (work) work->wait();
    });
  }

  [[nodiscard]] c10::intrusive_ptr<c10d::Work> start_all_gather(const at::Tensor& tensor, const at::Tensor& output,
                                                                bool async) const {
    at::Tensor input = carried(plain(tensor));
    at::Tensor target = carried(output);
    c10d::AllgatherOptions options;
    options.asyncOp = async;
    return backend->_allgather_base(target, input, options);
  }

  [[nodiscard]] c10::intrusive_ptr<c10d::Work> start_reduce_scatter(const at::Tensor& tensor, const at::Tensor& output,
                                                                    ReduceOp op, bool async) const {
    at::Tensor input = carried(plain(tensor));
    at::Tensor target = carried(output);
    c10d::ReduceScatterOptions options;
    options.reduceOp = to_c10d(carried(op, tensor.scalar_type()));
    options.asyncOp = async;
    return backend->_reduce_scatter_base(target, input, options);
  }

  // One point-to-point call of the backend.
  template <class Call>
  Pending post(const char* operation, const at::Tensor& tensor, int peer, Call&& call) {
    const int rank = backend ? backend->getRank() : 0;
    const int size = backend ? backend->getSize() : 1;
    check<ShapeError>(peer >= 0 && peer < size && peer != rank,
                      "{} on group {} (rank {} of {}): {} is not another rank of the group", operation, name, rank,
                      size, peer);
    count(nbytes(tensor));
    if (skips(nbytes(tensor))) return {};
    std::vector<at::Tensor> tensors{carried(plain(tensor))};
    return Pending(guarded(operation, [&] { return call(tensors); }), traffic);
  }
};

Communicator::Communicator() : Communicator(nullptr, "single") {}

Communicator::Communicator(c10::intrusive_ptr<c10d::Backend> backend, std::string name)
    : state_(std::make_shared<State>()) {
  state_->name = std::move(name);
  if (!backend) return;
  rank_ = backend->getRank();
  size_ = backend->getSize();
  if (size_ == 1) return;
  state_->moves_empty = dynamic_cast<detail::OperationBackend*>(backend.get()) != nullptr;
  state_->backend = std::move(backend);
}

const std::string& Communicator::name() const noexcept { return state_->name; }
const Traffic& Communicator::traffic() const noexcept { return *state_->traffic; }
const c10::intrusive_ptr<c10d::Backend>& Communicator::backend() const noexcept { return state_->backend; }

void Communicator::all_reduce(at::Tensor& tensor, ReduceOp op) const {
  if (size_ == 1) return;
  state_->count(nbytes(tensor));
  if (state_->skips(nbytes(tensor))) return;
  const at::Tensor memory = plain(tensor);
  std::vector<at::Tensor> tensors{carried(memory)};
  c10d::AllreduceOptions options;
  options.reduceOp = to_c10d(carried(op, tensor.scalar_type()));
  options.asyncOp = false;
  state_->run("all_reduce", [&] { return state_->backend->allreduce(tensors, options); });
  if (!memory.is_same(tensor)) tensor.copy_(memory);
}

Pending Communicator::all_reduce_coalesced(std::vector<at::Tensor> tensors, ReduceOp op) const {
  if (size_ == 1 || tensors.empty()) return {};
  const c10::ScalarType dtype = tensors.front().scalar_type();
  std::int64_t bytes = 0;
  std::vector<std::pair<at::Tensor, at::Tensor>> copies;
  for (at::Tensor& tensor : tensors) {
    check<ShapeError>(tensor.scalar_type() == dtype,
                      "all_reduce_coalesced on group {}: tensors of {} and {}; make one call per dtype", state_->name,
                      detail::dtype_name(dtype), detail::dtype_name(tensor.scalar_type()));
    bytes += nbytes(tensor);
    if (!is_plain(tensor)) {
      copies.emplace_back(tensor, plain(tensor));
      tensor = copies.back().second;
    }
    tensor = carried(tensor);
  }
  state_->count(bytes);
  if (state_->skips(bytes)) return {};
  if (!state_->moves_empty) std::erase_if(tensors, [](const at::Tensor& tensor) { return tensor.numel() == 0; });
  c10d::AllreduceCoalescedOptions options;
  options.reduceOp = to_c10d(carried(op, dtype));
  c10::intrusive_ptr<c10d::Work> work =
      state_->guarded("all_reduce_coalesced", [&] { return state_->backend->allreduce_coalesced(tensors, options); });
  if (!copies.empty()) work = c10::make_intrusive<CopyBackWork>(std::move(work), std::move(copies));
  return Pending(std::move(work), state_->traffic);
}

at::Tensor Communicator::all_gather(const at::Tensor& tensor) const {
  // A scalar is one row.
  const at::Tensor rows = tensor.dim() == 0 ? tensor.reshape({1}) : tensor;
  if (size_ == 1) return rows;
  at::Tensor output = empty_with_rows(rows, rows.size(0) * size_);
  state_->count(nbytes(output));
  if (state_->skips(nbytes(output))) return output;
  state_->run("all_gather", [&] { return state_->start_all_gather(rows, output, /*async=*/false); });
  return output;
}

Pending Communicator::post_all_gather(const at::Tensor& tensor, at::Tensor& output) const {
  check<ShapeError>(output.is_contiguous() && output.numel() == tensor.numel() * size_,
                    "post_all_gather on group {} (rank {} of {}): the output has {} elements, contiguous: {}; it must "
                    "be contiguous and have {}",
                    state_->name, rank_, size_, output.numel(), output.is_contiguous(), tensor.numel() * size_);
  if (size_ == 1) {
    output.copy_(tensor.view(output.sizes()));
    return {};
  }
  state_->count(nbytes(output));
  if (state_->skips(nbytes(output))) return {};
  return Pending(
      state_->guarded("all_gather", [&] { return state_->start_all_gather(tensor, output, /*async=*/true); }),
      state_->traffic);
}

at::Tensor Communicator::reduce_scatter(const at::Tensor& tensor, ReduceOp op) const {
  check_rows(tensor);
  if (size_ == 1) return tensor;
  at::Tensor output = empty_with_rows(tensor, tensor.size(0) / size_);
  state_->count(nbytes(tensor));
  if (state_->skips(nbytes(tensor))) return output;
  state_->run("reduce_scatter", [&] { return state_->start_reduce_scatter(tensor, output, op, /*async=*/false); });
  return output;
}

Pending Communicator::post_reduce_scatter(const at::Tensor& tensor, at::Tensor& output, ReduceOp op) const {
  check_rows(tensor);
  check<ShapeError>(output.is_contiguous() && output.numel() * size_ == tensor.numel(),
                    "post_reduce_scatter on group {} (rank {} of {}): the output has {} elements, contiguous: {}; it "
                    "must be contiguous and have {}",
                    state_->name, rank_, size_, output.numel(), output.is_contiguous(), tensor.numel() / size_);
  if (size_ == 1) {
    output.copy_(tensor.view(output.sizes()));
    return {};
  }
  state_->count(nbytes(tensor));
  if (state_->skips(nbytes(tensor))) return {};
  return Pending(state_->guarded("reduce_scatter",
                                 [&] { return state_->start_reduce_scatter(tensor, output, op, /*async=*/true); }),
                 state_->traffic);
}

void Communicator::check_rows(const at::Tensor& tensor) const {
  check<ShapeError>(
      tensor.dim() > 0 && tensor.size(0) % size_ == 0,
      "reduce_scatter on group {} (rank {} of {}): dim 0 of the input is {}, not a multiple of {}; pad the "
      "input",
      state_->name, rank_, size_, tensor.dim() > 0 ? tensor.size(0) : 0, size_);
}

at::Tensor Communicator::all_to_all(const at::Tensor& tensor, const std::vector<std::int64_t>& send_rows,
                                    const std::vector<std::int64_t>& receive_rows) const {
  const auto ranks = static_cast<std::size_t>(size_);
  check<ShapeError>(send_rows.size() == ranks && receive_rows.size() == ranks,
                    "all_to_all on group {} (rank {} of {}): {} counts of rows to send and {} to receive; give one per "
                    "rank",
                    state_->name, rank_, size_, send_rows.size(), receive_rows.size());
  const std::int64_t sent = std::accumulate(send_rows.begin(), send_rows.end(), std::int64_t{0});
  const std::int64_t received = std::accumulate(receive_rows.begin(), receive_rows.end(), std::int64_t{0});
  check<ShapeError>(tensor.dim() > 0 && tensor.size(0) == sent,
                    "all_to_all on group {} (rank {} of {}): the rows to send add up to {}, dim 0 of the input is {}",
                    state_->name, rank_, size_, sent, tensor.dim() > 0 ? tensor.size(0) : 0);
  if (size_ == 1) return tensor;
  at::Tensor output = empty_with_rows(tensor, received);
  state_->count(std::max(nbytes(tensor), nbytes(output)));
  at::Tensor input = carried(plain(tensor));
  at::Tensor target = carried(output);
  std::vector<std::int64_t> send(send_rows);
  std::vector<std::int64_t> receive(receive_rows);
  c10d::AllToAllOptions options;
  options.asyncOp = false;
  state_->run("all_to_all", [&] { return state_->backend->alltoall_base(target, input, receive, send, options); });
  return output;
}

void Communicator::broadcast(at::Tensor& tensor, int root) const {
  check<ShapeError>(root >= 0 && root < size_, "broadcast on group {}: root {} is not one of its {} ranks",
                    state_->name, root, size_);
  if (size_ == 1) return;
  state_->count(nbytes(tensor));
  if (state_->skips(nbytes(tensor))) return;
  const at::Tensor memory = plain(tensor);
  std::vector<at::Tensor> tensors{carried(memory)};
  c10d::BroadcastOptions options;
  options.rootRank = root;
  options.asyncOp = false;
  state_->run("broadcast", [&] { return state_->backend->broadcast(tensors, options); });
  if (!memory.is_same(tensor) && rank_ != root) tensor.copy_(memory);
}

void Communicator::send(const at::Tensor& tensor, int to, int tag) const { post_send(tensor, to, tag).wait(); }

void Communicator::receive(at::Tensor& tensor, int from, int tag) const {
  at::Tensor memory = plain(tensor);
  post_receive(memory, from, tag).wait();
  if (!memory.is_same(tensor)) tensor.copy_(memory);
}

Pending Communicator::post_send(const at::Tensor& tensor, int to, int tag) const {
  return state_->post("post_send", tensor, to,
                      [&](std::vector<at::Tensor>& tensors) { return state_->backend->send(tensors, to, tag); });
}

Pending Communicator::post_receive(at::Tensor& tensor, int from, int tag) const {
  check<ShapeError>(is_plain(tensor),
                    "post_receive on group {}: the tensor is not contiguous or a lazy conjugate; receive into a "
                    "contiguous tensor and copy",
                    state_->name);
  return state_->post("post_receive", tensor, from,
                      [&](std::vector<at::Tensor>& tensors) { return state_->backend->recv(tensors, from, tag); });
}

void Communicator::barrier() const {
  if (size_ == 1) return;
  state_->count(0);
  c10d::BarrierOptions options;
  options.asyncOp = false;
  state_->run("barrier", [&] { return state_->backend->barrier(options); });
}

}  // namespace tessera::comm
