// SPDX-License-Identifier: Apache-2.0
// Which samples a step trains on.
#include <numeric>

#include "tessera/base/error.h"
#include "tessera/train/dataset.h"

namespace tessera::train {
namespace {

// SplitMix64 (Steele, Lea, Flood 2014): a counter-based stream, written out so that the order of the data does not
// depend on a library's version.
class SplitMix {
 public:
  explicit SplitMix(std::uint64_t state) : state_(state) {}

  std::uint64_t next() {
    state_ += 0x9E3779B97F4A7C15U;
    auto z = state_;
    z = (z ^ (z >> 30U)) * 0xBF58476D1CE4E5B9U;
    z = (z ^ (z >> 27U)) * 0x94D049BB133111EBU;
    return z ^ (z >> 31U);
  }

  // Uniform in 0 .. bound - 1: draws above the largest multiple of bound are thrown away.
  std::uint64_t below(std::uint64_t bound) {
    const auto limit = ~std::uint64_t{0} - ~std::uint64_t{0} % bound;
    auto draw = next();
    while (draw >= limit) draw = next();
    return draw % bound;
  }

 private:
  std::uint64_t state_;
};

}  // namespace

std::vector<std::int64_t> make_permutation(std::int64_t count, std::uint64_t seed, std::uint64_t stream) {
  SplitMix random(SplitMix(seed).next() ^ SplitMix(stream + 1).next());
  std::vector<std::int64_t> order(static_cast<std::size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  for (auto i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
  return order;
}

BatchOrder batch_order(const DataConfig& config) {
  return config.order == "sequential" ? BatchOrder::kSequential : BatchOrder::kShuffled;
}

BatchStream::BatchStream(Samples samples, BatchOrder order, std::uint64_t seed, std::int64_t batch)
    : samples_(std::move(samples)), order_(order), seed_(seed), batch_(batch) {
  check<ConfigError>(samples_.size() > 0, "batches: there are no samples to train on");
  check<ConfigError>(batch_ >= 1, "batches: batch = {}; take at least 1", batch_);
}

std::vector<std::int64_t> BatchStream::indices(std::int64_t step) {
  check<ConfigError>(step >= 0, "batches: step {} lies before the first one", step);
  const auto count = samples_.size();
  std::vector<std::int64_t> result;
  result.reserve(static_cast<std::size_t>(batch_));
  for (auto position = step * batch_; position < (step + 1) * batch_; ++position) {
    const auto place = position % count;
    if (order_ == BatchOrder::kSequential) {
      result.push_back(place);
      continue;
    }
    const auto epoch = position / count;
    if (!epoch_ || epoch_->first != epoch) {
      epoch_ = std::pair(epoch, make_permutation(count, seed_, static_cast<std::uint64_t>(epoch)));
    }
    result.push_back(epoch_->second[static_cast<std::size_t>(place)]);
  }
  return result;
}

Batch BatchStream::at(std::int64_t step) { return samples_.take(indices(step)); }

std::int64_t BatchStream::steps_for(std::int64_t epochs) const noexcept {
  return (epochs * samples_.size() + batch_ - 1) / batch_;
}

}  // namespace tessera::train
