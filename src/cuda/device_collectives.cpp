// SPDX-License-Identifier: Apache-2.0
// Who copies or folds what, per collective.
#include "cuda/device_collectives.h"

#include <c10/cuda/CUDAException.h>
#include <fmt/format.h>

#include "comm/shares.h"
#include "cuda/fold.h"
#include "tessera/base/error.h"

namespace tessera::cuda {

namespace {

using comm::detail::CallKind;
using comm::detail::Operation;
using comm::detail::Piece;
using comm::detail::Pieces;

std::size_t index_of(int rank) { return static_cast<std::size_t>(rank); }

void copy(const Piece& target, const Piece& source, cudaStream_t stream) {
  // In-place gathers read and write the same place.
  if (target.bytes == 0 || target.data == source.data) return;
  C10_CUDA_CHECK(cudaMemcpyAsync(target.data, source.data, target.bytes, cudaMemcpyDefault, stream));
}

// A fold of nothing yet.
Fold fold_of(const Operation& operation, std::size_t bytes) {
  Fold fold;
  fold.dtype = operation.call.dtype;
  fold.op = operation.call.op;
  fold.count = bytes / c10::elementSize(operation.call.dtype);
  return fold;
}

// Folds input `piece` of all ranks into `target`.
void fold_piece(const Round& round, std::size_t piece, const Piece& target, cudaStream_t stream) {
  Fold fold = fold_of(round.mine(), target.bytes);
  for (int r = 0; r < round.size(); ++r) fold.sources[index_of(r)] = round.of(r).inputs[piece].data;
  fold.num_sources = round.size();
  fold.targets[0] = target.data;
  fold.num_targets = 1;
  C10_CUDA_CHECK(enqueue_fold(fold, stream));
}

// One pass: the fold of this rank's share goes straight into everybody's tensors.
void enqueue_all_reduce(const Round& round, cudaStream_t stream) {
  const Operation& mine = round.mine();
  const comm::detail::Range share = comm::detail::share_of(mine.call.bytes, round.rank, round.size());
  comm::detail::for_each_part(
      mine.inputs, share, [&](std::size_t piece, std::size_t offset, std::size_t, std::size_t bytes) {
        Fold fold = fold_of(mine, bytes);
        fold.num_sources = fold.num_targets = round.size();
        for (int r = 0; r < round.size(); ++r) {
          fold.targets[index_of(r)] = round.of(r).inputs[piece].data + offset;
          fold.sources[index_of(r)] = fold.targets[index_of(r)];
        }
        C10_CUDA_CHECK(enqueue_fold(fold, stream));
      });
}

void enqueue_gather(const Round& round, cudaStream_t stream) {
  const Pieces& outputs = round.mine().outputs;
  for (std::size_t r = 0; r < outputs.size(); ++r) {
    copy(outputs[r], round.of(static_cast<int>(r)).inputs[0], stream);
  }
}

void enqueue_all_to_all(const Round& round, cudaStream_t stream) {
  for (int r = 0; r < round.size(); ++r) {
    copy(round.mine().outputs[index_of(r)], round.of(r).inputs[index_of(round.rank)], stream);
  }
}

void check_calls(const Round& round) {
  const std::uint64_t first = comm::detail::pack(round.of(0).call);
  for (int r = 1; r < round.size(); ++r) {
    check<CommunicationError>(comm::detail::pack(round.of(r).call) == first,
                              "group {}: rank 0 called {}, rank {} called {}; all ranks must call the same collectives "
                              "in the same order",
                              round.group, comm::detail::describe(round.of(0).call), r,
                              comm::detail::describe(round.of(r).call));
  }
}

void check_lists(const Round& round) {
  const Pieces& first = round.of(0).inputs;
  for (int r = 1; r < round.size(); ++r) {
    const Pieces& theirs = round.of(r).inputs;
    const bool same = std::equal(first.begin(), first.end(), theirs.begin(), theirs.end(),
                                 [](const Piece& a, const Piece& b) { return a.bytes == b.bytes; });
    check<CommunicationError>(same,
                              "group {}: {}: the lists of tensors of ranks 0 and {} differ; tensor by tensor they must "
                              "have the same sizes",
                              round.group, comm::detail::describe(round.of(0).call), r);
  }
}

void check_splits(const Round& round) {
  for (int from = 0; from < round.size(); ++from) {
    for (int to = 0; to < round.size(); ++to) {
      const std::size_t sent = round.of(from).inputs[index_of(to)].bytes;
      const std::size_t expected = round.of(to).outputs[index_of(from)].bytes;
      check<CommunicationError>(sent == expected,
                                "group {}: all_to_all: rank {} sends {} bytes to rank {}, which expects {}; the sender's "
                                "split sizes must equal the receiver's",
                                round.group, from, sent, to, expected);
    }
  }
}

}  // namespace

void check_round(const Round& round) {
  check_calls(round);
  if (round.mine().call.kind == CallKind::kAllReduceCoalesced) check_lists(round);
  if (round.mine().call.kind == CallKind::kAllToAll) check_splits(round);
}

void enqueue(const Round& round, cudaStream_t stream) {
  const Operation& mine = round.mine();
  const bool is_root = round.rank == mine.call.root;
  switch (mine.call.kind) {
    case CallKind::kNone:
    case CallKind::kBarrier:
      return;
    case CallKind::kAllReduce:
    case CallKind::kAllReduceCoalesced:
      return enqueue_all_reduce(round, stream);
    case CallKind::kReduce:
      if (is_root) fold_piece(round, 0, mine.inputs[0], stream);
      return;
    case CallKind::kBroadcast:
      if (!is_root) copy(mine.inputs[0], round.of(mine.call.root).inputs[0], stream);
      return;
    case CallKind::kAllGather:
    case CallKind::kGather:
      return enqueue_gather(round, stream);
    case CallKind::kScatter:
      return copy(mine.outputs[0], round.of(mine.call.root).inputs[index_of(round.rank)], stream);
    case CallKind::kReduceScatter:
      return fold_piece(round, index_of(round.rank), mine.outputs[0], stream);
    case CallKind::kAllToAll:
      return enqueue_all_to_all(round, stream);
  }
}

}  // namespace tessera::cuda
