// SPDX-License-Identifier: Apache-2.0
// The collectives other than all-reduce: who shows what, and what each rank takes.
#include "comm/collectives.h"

#include <fmt/format.h>

#include <vector>

#include "comm/reduce_kernels.h"
#include "tessera/base/error.h"

namespace tessera::comm::detail {

namespace {

const Pieces kNothing;

std::size_t index_of(int rank) { return static_cast<std::size_t>(rank); }

// The part of a piece that a round covers may be shorter than the round, or empty.
void copy_part(const Piece& target, std::size_t begin, std::size_t bytes, const std::byte* source) {
  if (target.bytes <= begin) return;
  // In-place gathers read and write the same place.
  if (target.data + begin == source) return;
  std::memcpy(target.data + begin, source, std::min(bytes, target.bytes - begin));
}

void run_barrier(Exchange& exchange) {
  exchange.arrival().announce();
  exchange.arrival().await();
}

void run_broadcast(Exchange& exchange, const Operation& operation) {
  const int root = operation.call.root;
  const bool is_root = exchange.arrival().rank() == root;
  exchange.run(is_root ? operation.inputs : kNothing, 1, operation.call.bytes,
               [&](std::size_t begin, std::size_t bytes, const View& view) {
                 if (!is_root) copy_part(operation.inputs[0], begin, bytes, view(root, 0));
               });
}

void run_gather(Exchange& exchange, const Operation& operation) {
  exchange.run(operation.inputs, 1, operation.call.bytes, [&](std::size_t begin, std::size_t bytes, const View& view) {
    for (std::size_t r = 0; r < operation.outputs.size(); ++r) {
      copy_part(operation.outputs[r], begin, bytes, view(static_cast<int>(r), 0));
    }
  });
}

void run_scatter(Exchange& exchange, const Operation& operation) {
  const Arrival& arrival = exchange.arrival();
  exchange.run(operation.inputs, index_of(arrival.size()), operation.call.bytes,
               [&](std::size_t begin, std::size_t bytes, const View& view) {
                 copy_part(operation.outputs[0], begin, bytes, view(operation.call.root, index_of(arrival.rank())));
               });
}

// Folds piece `piece` of all ranks into `target`.
auto fold_into(const Exchange& exchange, const Operation& operation, const Piece& target, std::size_t piece) {
  const FoldKernel fold = find_fold_kernel(operation.call.dtype, operation.call.op);
  const std::size_t element_bytes = c10::elementSize(operation.call.dtype);
  const int size = exchange.arrival().size();
  return [=, sources = std::vector<const std::byte*>(index_of(size))](std::size_t begin, std::size_t bytes,
                                                                      const View& view) mutable {
    for (int r = 0; r < size; ++r) sources[index_of(r)] = view(r, piece);
    std::byte* out = target.data + begin;
    fold(sources.data(), size, &out, 1, bytes / element_bytes);
  };
}

void run_reduce(Exchange& exchange, const Operation& operation) {
  auto fold = fold_into(exchange, operation, operation.inputs[0], 0);
  const bool is_root = exchange.arrival().rank() == operation.call.root;
  exchange.run(operation.inputs, 1, operation.call.bytes, [&](std::size_t begin, std::size_t bytes, const View& view) {
    if (is_root) fold(begin, bytes, view);
  });
}

void run_reduce_scatter(Exchange& exchange, const Operation& operation) {
  const auto rank = index_of(exchange.arrival().rank());
  exchange.run(operation.inputs, operation.inputs.size(), operation.call.bytes,
               fold_into(exchange, operation, operation.outputs[0], rank));
}

class AllToAll {
 public:
  AllToAll(Exchange& exchange, const Operation& operation)
      : exchange_(exchange), arrival_(exchange.arrival()), inputs_(operation.inputs), outputs_(operation.outputs) {}

  void run() { exchange_.reach() == Reach::kDirect ? run_direct() : run_staged(); }

 private:
  void run_direct() {
    exchange_.run_direct(inputs_, [this](const View& view) {
      const auto rank = index_of(arrival_.rank());
      for (int r = 0; r < arrival_.size(); ++r) {
        check_size(r, static_cast<const Piece*>(arrival_.pointer_of(r))[rank].bytes);
        const Piece& output = outputs_[index_of(r)];
        copy_part(output, 0, output.bytes, view(r, rank));
      }
    });
  }

  // The first round travels before the longest piece is known; every rank learns it from the sizes beside it.
  void run_staged() {
    const auto rank = index_of(arrival_.rank());
    const std::size_t part = exchange_.part_bytes(inputs_.size());
    const unsigned parity = exchange_.next_sizes_parity();
    for (std::size_t p = 0; p < inputs_.size(); ++p) {
      arrival_.region().sizes(arrival_.rank(), parity)[p] = inputs_[p].bytes;
    }
    std::size_t longest = 0;
    std::size_t begin = 0;
    do {
      exchange_.stage(inputs_, begin, part);
      arrival_.announce();
      arrival_.await();
      if (begin == 0) longest = agree_on_longest(parity);
      const View view(arrival_, exchange_.take_slot(), part);
      for (int r = 0; r < arrival_.size(); ++r) copy_part(outputs_[index_of(r)], begin, part, view(r, rank));
      begin += part;
    } while (begin < longest);
  }

  std::size_t agree_on_longest(unsigned parity) const {
    std::size_t longest = 0;
    for (int r = 0; r < arrival_.size(); ++r) {
      const std::uint64_t* sizes = arrival_.region().sizes(r, parity);
      check_size(r, sizes[arrival_.rank()]);
      longest = std::max(longest, *std::max_element(sizes, sizes + arrival_.size()));
    }
    return longest;
  }

  void check_size(int from, std::size_t sent) const {
    const std::size_t expected = outputs_[index_of(from)].bytes;
    if (sent == expected) return;
    arrival_.fail(
        fmt::format("{}: rank {} sends {} bytes to rank {}, which expects {}; the sender's split sizes must "
                    "equal the receiver's",
                    arrival_.describe_call(), from, sent, arrival_.rank(), expected));
  }

  Exchange& exchange_;
  Arrival& arrival_;
  const Pieces& inputs_;
  const Pieces& outputs_;
};

}  // namespace

void run_collective(Exchange& exchange, const Operation& operation) {
  exchange.arrival().begin(operation.call);
  switch (operation.call.kind) {
    case CallKind::kNone:
      return;
    case CallKind::kBarrier:
      return run_barrier(exchange);
    case CallKind::kAllReduce:
    case CallKind::kAllReduceCoalesced:
      return run_all_reduce(exchange, operation);
    case CallKind::kReduce:
      return run_reduce(exchange, operation);
    case CallKind::kBroadcast:
      return run_broadcast(exchange, operation);
    case CallKind::kAllGather:
    case CallKind::kGather:
      return run_gather(exchange, operation);
    case CallKind::kScatter:
      return run_scatter(exchange, operation);
    case CallKind::kReduceScatter:
      return run_reduce_scatter(exchange, operation);
    case CallKind::kAllToAll:
      return AllToAll(exchange, operation).run();
  }
}

}  // namespace tessera::comm::detail
