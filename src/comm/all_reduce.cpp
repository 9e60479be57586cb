// SPDX-License-Identifier: Apache-2.0
// All-reduce of a list of tensors, seen as one message of their bytes one after the other.
#include <c10/util/SmallVector.h>

#include "comm/collectives.h"
#include "comm/reduce_kernels.h"
#include "comm/shares.h"

namespace tessera::comm::detail {

namespace {

// Up to this size every rank folds everything; above, each its share, at the price of one more meeting.
constexpr std::size_t kShareFromBytes = 16 * 1024;

using Sources = c10::SmallVector<const std::byte*, 16>;
using Targets = c10::SmallVector<std::byte*, 16>;

class AllReduce {
 public:
  AllReduce(Exchange& exchange, const Operation& operation)
      : exchange_(exchange),
        arrival_(exchange.arrival()),
        pieces_(operation.inputs),
        bytes_(operation.call.bytes),
        element_bytes_(c10::elementSize(operation.call.dtype)),
        fold_(find_fold_kernel(operation.call.dtype, operation.call.op)),
        sources_(static_cast<std::size_t>(arrival_.size())),
        targets_(static_cast<std::size_t>(arrival_.size())) {}

  void run() {
    if (exchange_.is_direct(bytes_)) {
      exchange_.run_direct(pieces_, [this](const View& view) { fold_share_in_place(view); });
    } else if (arrival_.size() <= 2 || bytes_ <= kShareFromBytes) {
      fold_everything_staged();
    } else {
      fold_shares_staged();
    }
  }

 private:
  [[nodiscard]] std::size_t chunk_bytes() const { return arrival_.region().shape().chunk_bytes; }
  [[nodiscard]] Range chunk(std::size_t index) const {
    const std::size_t begin = index * chunk_bytes();
    return {begin, std::min(bytes_, begin + chunk_bytes())};
  }

  // One pass: the sum of this rank's share goes straight into everybody's tensors.
  void fold_share_in_place(const View& view) {
    for_each_part(pieces_, share_of(bytes_, arrival_.rank(), arrival_.size()),
                  [&](std::size_t piece, std::size_t offset, std::size_t, std::size_t bytes) {
                    for (int r = 0; r < arrival_.size(); ++r) {
                      const auto index = static_cast<std::size_t>(r);
                      sources_[index] = view(r, piece) + offset;
                      targets_[index] = const_cast<std::byte*>(sources_[index]);
                    }
                    fold_(sources_.data(), arrival_.size(), targets_.data(), arrival_.size(), bytes / element_bytes_);
                  });
  }

  void stage(Range range) {
    std::byte* staging = arrival_.region().staging(arrival_.rank(), exchange_.slot());
    for_each_part(pieces_, range, [&](std::size_t piece, std::size_t offset, std::size_t at, std::size_t bytes) {
      std::memcpy(staging + at, pieces_[piece].data + offset, bytes);
    });
  }

  void meet() {
    arrival_.announce();
    arrival_.await();
  }

  // The next chunk is copied in before the peers are awaited, so that they have the time of a copy to arrive in. Its
  // slot is free: all have announced the chunk before this one, hence folded the one before that.
  void fold_everything_staged() {
    std::size_t index = 0;
    stage(chunk(index));
    while (true) {
      arrival_.announce();
      const unsigned slot = exchange_.take_slot();
      const Range range = chunk(index++);
      const bool more = index * chunk_bytes() < bytes_;
      if (more) stage(chunk(index));
      arrival_.await();
      fold_everything(range, slot);
      if (!more) return;
    }
  }

  void fold_everything(Range range, unsigned slot) {
    for_each_part(pieces_, range, [&](std::size_t piece, std::size_t offset, std::size_t at, std::size_t bytes) {
      std::byte* target = pieces_[piece].data + offset;
      for (int r = 0; r < arrival_.size(); ++r) {
        sources_[static_cast<std::size_t>(r)] = r == arrival_.rank() ? target : arrival_.region().staging(r, slot) + at;
      }
      fold_(sources_.data(), arrival_.size(), &target, 1, bytes / element_bytes_);
    });
  }

  // A pipeline of three slots with one meeting per chunk: while chunk i is folded, i + 1 is copied in and i - 1 out.
  void fold_shares_staged() {
    const std::size_t num_chunks = (bytes_ + chunk_bytes() - 1) / chunk_bytes();
    unsigned folded_slot = 0;
    stage(chunk(0));
    for (std::size_t i = 0; i < num_chunks; ++i) {
      meet();
      if (i > 0) copy_out(chunk(i - 1), folded_slot);
      folded_slot = exchange_.take_slot();
      fold_own_share(chunk(i), folded_slot);
      if (i + 1 < num_chunks) stage(chunk(i + 1));
    }
    meet();
    copy_out(chunk(num_chunks - 1), folded_slot);
  }

  void fold_own_share(Range range, unsigned slot) {
    const Range share = share_of(range.end - range.begin, arrival_.rank(), arrival_.size());
    for (int r = 0; r < arrival_.size(); ++r) {
      sources_[static_cast<std::size_t>(r)] = arrival_.region().staging(r, slot) + share.begin;
    }
    std::byte* target = arrival_.region().staging(arrival_.rank(), slot) + share.begin;
    fold_(sources_.data(), arrival_.size(), &target, 1, (share.end - share.begin) / element_bytes_);
  }

  void copy_out(Range range, unsigned slot) {
    for (int r = 0; r < arrival_.size(); ++r) {
      const Range share = share_of(range.end - range.begin, r, arrival_.size());
      const std::byte* source = arrival_.region().staging(r, slot) + share.begin;
      for_each_part(pieces_, {range.begin + share.begin, range.begin + share.end},
                    [&](std::size_t piece, std::size_t offset, std::size_t at, std::size_t bytes) {
                      std::memcpy(pieces_[piece].data + offset, source + at, bytes);
                    });
    }
  }

  Exchange& exchange_;
  Arrival& arrival_;
  const Pieces& pieces_;
  std::size_t bytes_;
  std::size_t element_bytes_;
  FoldKernel fold_;
  Sources sources_;
  Targets targets_;
};

}  // namespace

void run_all_reduce(Exchange& exchange, const Operation& operation) { AllReduce(exchange, operation).run(); }

}  // namespace tessera::comm::detail
