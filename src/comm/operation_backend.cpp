// SPDX-License-Identifier: Apache-2.0
// Checks tensors and turns c10d's many forms of a collective into operations.
#include "comm/operation_backend.h"

#include <utility>

#include "tessera/base/error.h"

namespace tessera::comm::detail {

namespace {

using Tensors = std::vector<at::Tensor>;

// The work of everything that is over when its call returns.
class DoneWork final : public c10d::Work {
 public:
  bool isCompleted() override { return true; }
  bool isSuccess() const override { return true; }
  void synchronize() override {}
  bool wait(std::chrono::milliseconds) override { return true; }
};

ReduceOp to_reduce_op(const char* operation, const c10d::ReduceOp& op) {
  switch (static_cast<c10d::ReduceOp::RedOpType>(op)) {
    case c10d::ReduceOp::SUM:
      return ReduceOp::kSum;
    case c10d::ReduceOp::AVG:
      return ReduceOp::kAvg;
    case c10d::ReduceOp::MAX:
      return ReduceOp::kMax;
    case c10d::ReduceOp::MIN:
      return ReduceOp::kMin;
    case c10d::ReduceOp::PRODUCT:
      return ReduceOp::kProduct;
    default:
      throw ShapeError(std::string(operation) + ": allowed reductions are sum, avg, max, min and product");
  }
}

const at::Tensor& single(const char* operation, const Tensors& tensors) {
  check<ShapeError>(tensors.size() == 1, "{}: takes one tensor per rank, not {}", operation, tensors.size());
  return tensors.front();
}

const Tensors& list_at_root(const char* operation, const std::vector<Tensors>& lists) {
  check<ShapeError>(lists.size() == 1, "{}: takes one list of tensors, not {}", operation, lists.size());
  return lists.front();
}

}  // namespace

const char* name_of(Direction direction) { return direction == Direction::kSend ? "send" : "receive"; }

OperationBackend::OperationBackend(int rank, int size, std::string group, c10::Device device)
    : c10d::Backend(rank, size), done_(c10::make_intrusive<DoneWork>()), group_(std::move(group)), device_(device) {}

void OperationBackend::check_rank(const char* operation, int64_t rank) const {
  check<ShapeError>(rank >= 0 && rank < size_, "{}: rank {} is not in group {} of {} ranks", operation, rank,
                    group_, size_);
}

Piece OperationBackend::checked_piece(const char* operation, const at::Tensor& tensor) const {
  check<ShapeError>(tensor.device() == device_, "{}: the tensor is on {}; group {} moves tensors on {}", operation,
                    tensor.device().str(), group_, device_.str());
  check<ShapeError>(tensor.is_contiguous(), "{}: the tensor is not contiguous; pass tensor.contiguous()", operation);
  check<ShapeError>(tensor.nbytes() <= kMaxBytes, "{}: {} bytes are more than one call can carry ({})", operation,
                    tensor.nbytes(), kMaxBytes);
  return {static_cast<std::byte*>(tensor.data_ptr()), static_cast<std::size_t>(tensor.nbytes())};
}

// `tensor` as one equal piece per rank.
Pieces OperationBackend::split_evenly(const char* operation, const at::Tensor& tensor, std::size_t piece_bytes) const {
  const Piece whole = checked_piece(operation, tensor);
  check<ShapeError>(whole.bytes == piece_bytes * static_cast<std::size_t>(size_),
                    "{}: the larger tensor has {} bytes, not {} times the {} bytes of the smaller", operation,
                    whole.bytes, size_, piece_bytes);
  Pieces pieces;
  for (int i = 0; i < size_; ++i)
    pieces.push_back({whole.data + static_cast<std::size_t>(i) * piece_bytes, piece_bytes});
  return pieces;
}

// One tensor per rank of `piece_bytes` each.
Pieces OperationBackend::list_of(const char* operation, const Tensors& tensors, std::size_t piece_bytes) const {
  check<ShapeError>(tensors.size() == static_cast<std::size_t>(size_),
                    "{}: the list has {} tensors, not one per rank, {}", operation, tensors.size(), size_);
  Pieces pieces;
  for (const at::Tensor& tensor : tensors) {
    pieces.push_back(checked_piece(operation, tensor));
    check<ShapeError>(pieces.back().bytes == piece_bytes, "{}: tensors of {} and {} bytes; all must have one size",
                      operation, pieces.back().bytes, piece_bytes);
  }
  return pieces;
}

// Rows of dim 0 as pieces; no rows given: equal parts.
Pieces OperationBackend::split_rows(const char* operation, const at::Tensor& tensor, const std::vector<int64_t>& rows) const {
  const Piece whole = checked_piece(operation, tensor);
  if (rows.empty()) {
    return split_evenly(operation, tensor, whole.bytes / static_cast<std::size_t>(size_));
  }
  check<ShapeError>(rows.size() == static_cast<std::size_t>(size_), "{}: {} split sizes for {} ranks", operation,
                    rows.size(), size_);
  const int64_t num_rows = tensor.dim() == 0 ? 0 : tensor.size(0);
  const std::size_t row_bytes = num_rows == 0 ? 0 : whole.bytes / static_cast<std::size_t>(num_rows);
  Pieces pieces;
  int64_t begin = 0;
  for (const int64_t row_count : rows) {
    check<ShapeError>(row_count >= 0, "{}: a split size is {}; it must not be negative", operation, row_count);
    pieces.push_back(
        {whole.data + static_cast<std::size_t>(begin) * row_bytes, static_cast<std::size_t>(row_count) * row_bytes});
    begin += row_count;
  }
  check<ShapeError>(begin == num_rows, "{}: split sizes add up to {} rows, the tensor has {}", operation, begin,
                    num_rows);
  return pieces;
}

OperationBackend::WorkPtr OperationBackend::broadcast(Tensors& tensors, const c10d::BroadcastOptions& options) {
  const at::Tensor& tensor = single("broadcast", tensors);
  check_rank("broadcast", options.rootRank);
  const Piece piece = checked_piece("broadcast", tensor);
  return run({.call = {.kind = CallKind::kBroadcast,
                       .dtype = tensor.scalar_type(),
                       .root = static_cast<int>(options.rootRank),
                       .bytes = piece.bytes},
              .inputs = {piece},
              .outputs = {}},
             options.asyncOp, {&tensors});
}

OperationBackend::WorkPtr OperationBackend::allreduce(Tensors& tensors, const c10d::AllreduceOptions& options) {
  const at::Tensor& tensor = single("all_reduce", tensors);
  const Piece piece = checked_piece("all_reduce", tensor);
  return run({.call = {.kind = CallKind::kAllReduce,
                       .op = to_reduce_op("all_reduce", options.reduceOp),
                       .dtype = tensor.scalar_type(),
                       .bytes = piece.bytes},
              .inputs = {piece},
              .outputs = {}},
             options.asyncOp, {&tensors});
}

OperationBackend::WorkPtr OperationBackend::allreduce_coalesced(Tensors& tensors,
                                                        const c10d::AllreduceCoalescedOptions& options) {
  constexpr const char* kName = "all_reduce_coalesced";
  check<ShapeError>(!tensors.empty(), "{}: the list of tensors is empty", kName);
  Operation operation;
  operation.call = {.kind = CallKind::kAllReduceCoalesced,
                    .op = to_reduce_op(kName, options.reduceOp),
                    .dtype = tensors.front().scalar_type()};
  for (const at::Tensor& tensor : tensors) {
    check<ShapeError>(tensor.scalar_type() == operation.call.dtype, "{}: tensors of {} and {}; one call has one dtype",
                      kName, dtype_name(operation.call.dtype), dtype_name(tensor.scalar_type()));
    operation.inputs.push_back(checked_piece(kName, tensor));
    operation.call.bytes += operation.inputs.back().bytes;
  }
  check<ShapeError>(operation.call.bytes <= kMaxBytes, "{}: {} bytes are more than one call can carry ({})", kName,
                    operation.call.bytes, kMaxBytes);
  return run(std::move(operation), options.asyncOp, {&tensors});
}

OperationBackend::WorkPtr OperationBackend::reduce(Tensors& tensors, const c10d::ReduceOptions& options) {
  const at::Tensor& tensor = single("reduce", tensors);
  check_rank("reduce", options.rootRank);
  const Piece piece = checked_piece("reduce", tensor);
  return run({.call = {.kind = CallKind::kReduce,
                       .op = to_reduce_op("reduce", options.reduceOp),
                       .dtype = tensor.scalar_type(),
                       .root = static_cast<int>(options.rootRank),
                       .bytes = piece.bytes},
              .inputs = {piece},
              .outputs = {}},
             options.asyncOp, {&tensors});
}

OperationBackend::WorkPtr OperationBackend::allgather(std::vector<Tensors>& outputs, Tensors& inputs,
                                              const c10d::AllgatherOptions& options) {
  const at::Tensor& input = single("all_gather", inputs);
  const Tensors& list = list_at_root("all_gather", outputs);
  const Piece piece = checked_piece("all_gather", input);
  return run({.call = {.kind = CallKind::kAllGather, .dtype = input.scalar_type(), .bytes = piece.bytes},
              .inputs = {piece},
              .outputs = list_of("all_gather", list, piece.bytes)},
             options.asyncOp, {&inputs, &list});
}

OperationBackend::WorkPtr OperationBackend::_allgather_base(at::Tensor& output, at::Tensor& input,
                                                    const c10d::AllgatherOptions& options) {
  const Piece piece = checked_piece("all_gather", input);
  Operation operation{.call = {.kind = CallKind::kAllGather, .dtype = input.scalar_type(), .bytes = piece.bytes},
                      .inputs = {piece},
                      .outputs = split_evenly("all_gather", output, piece.bytes)};
  if (!options.asyncOp) return run(std::move(operation), false, {});
  const Tensors keep{input, output};
  return run(std::move(operation), true, {&keep});
}

OperationBackend::WorkPtr OperationBackend::allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                                                    const c10d::AllgatherOptions& options) {
  check<ShapeError>(outputs.size() == inputs.size(), "all_gather_coalesced: {} outputs for {} inputs", outputs.size(),
                    inputs.size());
  // The queue keeps the order, so the last one done means all done.
  WorkPtr last = done_;
  for (std::size_t i = 0; i < inputs.size(); ++i) last = _allgather_base(outputs[i], inputs[i], options);
  return last;
}

OperationBackend::WorkPtr OperationBackend::gather(std::vector<Tensors>& outputs, Tensors& inputs,
                                           const c10d::GatherOptions& options) {
  const at::Tensor& input = single("gather", inputs);
  check_rank("gather", options.rootRank);
  const Piece piece = checked_piece("gather", input);
  Operation operation{.call = {.kind = CallKind::kGather,
                               .dtype = input.scalar_type(),
                               .root = static_cast<int>(options.rootRank),
                               .bytes = piece.bytes},
                      .inputs = {piece},
                      .outputs = {}};
  if (rank_ != options.rootRank) return run(std::move(operation), options.asyncOp, {&inputs});
  const Tensors& list = list_at_root("gather", outputs);
  operation.outputs = list_of("gather", list, piece.bytes);
  return run(std::move(operation), options.asyncOp, {&inputs, &list});
}

OperationBackend::WorkPtr OperationBackend::scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                                            const c10d::ScatterOptions& options) {
  const at::Tensor& output = single("scatter", outputs);
  check_rank("scatter", options.rootRank);
  const Piece piece = checked_piece("scatter", output);
  Operation operation{.call = {.kind = CallKind::kScatter,
                               .dtype = output.scalar_type(),
                               .root = static_cast<int>(options.rootRank),
                               .bytes = piece.bytes},
                      .inputs = {},
                      .outputs = {piece}};
  if (rank_ != options.rootRank) return run(std::move(operation), options.asyncOp, {&outputs});
  const Tensors& list = list_at_root("scatter", inputs);
  operation.inputs = list_of("scatter", list, piece.bytes);
  return run(std::move(operation), options.asyncOp, {&outputs, &list});
}

OperationBackend::WorkPtr OperationBackend::reduce_scatter_pieces(Operation operation, const at::Tensor& output,
                                                          const Tensors& inputs,
                                                          const c10d::ReduceScatterOptions& options) {
  operation.call = {.kind = CallKind::kReduceScatter,
                    .op = to_reduce_op("reduce_scatter", options.reduceOp),
                    .dtype = output.scalar_type(),
                    .bytes = static_cast<std::size_t>(output.nbytes())};
  operation.outputs = {checked_piece("reduce_scatter", output)};
  if (!options.asyncOp) return run(std::move(operation), false, {});
  const Tensors keep{output};
  return run(std::move(operation), true, {&keep, &inputs});
}

OperationBackend::WorkPtr OperationBackend::reduce_scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                                                   const c10d::ReduceScatterOptions& options) {
  const at::Tensor& output = single("reduce_scatter", outputs);
  const Tensors& list = list_at_root("reduce_scatter", inputs);
  Operation operation;
  operation.inputs = list_of("reduce_scatter", list, static_cast<std::size_t>(output.nbytes()));
  return reduce_scatter_pieces(std::move(operation), output, list, options);
}

OperationBackend::WorkPtr OperationBackend::_reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                                                         const c10d::ReduceScatterOptions& options) {
  Operation operation;
  operation.inputs = split_evenly("reduce_scatter", input, static_cast<std::size_t>(output.nbytes()));
  return reduce_scatter_pieces(std::move(operation), output, {input}, options);
}

OperationBackend::WorkPtr OperationBackend::reduce_scatter_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                                                    const c10d::ReduceScatterOptions& options) {
  check<ShapeError>(outputs.size() == inputs.size(), "reduce_scatter_coalesced: {} outputs for {} inputs",
                    outputs.size(), inputs.size());
  WorkPtr last = done_;
  for (std::size_t i = 0; i < inputs.size(); ++i) last = _reduce_scatter_base(outputs[i], inputs[i], options);
  return last;
}

OperationBackend::WorkPtr OperationBackend::alltoall_base(at::Tensor& output, at::Tensor& input,
                                                  std::vector<int64_t>& output_rows, std::vector<int64_t>& input_rows,
                                                  const c10d::AllToAllOptions& options) {
  Operation operation{.call = {.kind = CallKind::kAllToAll, .dtype = input.scalar_type()},
                      .inputs = split_rows("all_to_all", input, input_rows),
                      .outputs = split_rows("all_to_all", output, output_rows)};
  if (!options.asyncOp) return run(std::move(operation), false, {});
  const Tensors keep{input, output};
  return run(std::move(operation), true, {&keep});
}

OperationBackend::WorkPtr OperationBackend::alltoall(Tensors& outputs, Tensors& inputs, const c10d::AllToAllOptions& options) {
  const auto ranks = static_cast<std::size_t>(size_);
  check<ShapeError>(outputs.size() == ranks && inputs.size() == ranks,
                    "all_to_all: {} outputs and {} inputs; the lists must have one tensor per rank, {}", outputs.size(),
                    inputs.size(), size_);
  Operation operation{
      .call = {.kind = CallKind::kAllToAll, .dtype = inputs.front().scalar_type()}, .inputs = {}, .outputs = {}};
  for (std::size_t r = 0; r < ranks; ++r) {
    operation.inputs.push_back(checked_piece("all_to_all", inputs[r]));
    operation.outputs.push_back(checked_piece("all_to_all", outputs[r]));
  }
  return run(std::move(operation), options.asyncOp, {&inputs, &outputs});
}

OperationBackend::WorkPtr OperationBackend::checked_transfer(Direction direction, const Tensors& tensors, int peer,
                                                             int tag) {
  const char* operation = name_of(direction);
  const at::Tensor& tensor = single(operation, tensors);
  return transfer({.direction = direction,
                   .tensor = tensor,
                   .piece = checked_piece(operation, tensor),
                   .peer = peer,
                   .tag = tag,
                   .epoch = epoch_});
}

OperationBackend::WorkPtr OperationBackend::send(Tensors& tensors, int to, int tag) {
  check_rank("send", to);
  return checked_transfer(Direction::kSend, tensors, to, tag);
}

OperationBackend::WorkPtr OperationBackend::recv(Tensors& tensors, int from, int tag) {
  check_rank("receive", from);
  return checked_transfer(Direction::kReceive, tensors, from, tag);
}

OperationBackend::WorkPtr OperationBackend::recvAnysource(Tensors& tensors, int tag) {
  return checked_transfer(Direction::kReceive, tensors, kAnyRank, tag);
}

OperationBackend::WorkPtr OperationBackend::barrier(const c10d::BarrierOptions& options) {
  return run({.call = {.kind = CallKind::kBarrier}, .inputs = {}, .outputs = {}}, options.asyncOp, {});
}

}  // namespace tessera::comm::detail
