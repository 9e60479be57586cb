// SPDX-License-Identifier: Apache-2.0
// Training data: where samples come from, which are held out, and which of them make up the batch of a step.
//
// Nothing here knows about ranks: the batch of step t is a pure function of (data, seed, t, batch size), and ranks take
// their shares of it afterwards.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tessera/train/config.h"
#include "tessera/train/workload.h"

namespace tessera::train {

/// Inputs and targets of some samples.
///
/// Shapes    kVector  input float32 [B, width]            target int64 [B]
///           kImage   input float32 [B, 1, side, side]    target int64 [B]
///           kTokens  input int64 [B, width]              target int64 [B, width], one token later
struct Batch {
  torch::Tensor input;
  torch::Tensor target;
};

/// A table of samples in memory. A value; copies share the tensors, which nobody writes: ranks that are threads may
/// share one. Integers are stored as narrow as they came and widened when a batch is taken.
class Samples {
 public:
  Samples() = default;
  /// Shapes  input [N, ...], target [N, ...]
  Samples(torch::Tensor input, torch::Tensor target);

  [[nodiscard]] std::int64_t size() const noexcept { return size_; }
  /// The samples numbered `indices`, in that order.
  [[nodiscard]] Batch take(const std::vector<std::int64_t>& indices) const;
  /// Samples begin .. begin + count - 1; fewer where the table ends. For evaluation.
  [[nodiscard]] Batch slice(std::int64_t begin, std::int64_t count) const;
  /// A table of the samples numbered `indices`.
  [[nodiscard]] Samples subset(const std::vector<std::int64_t>& indices) const;

 private:
  torch::Tensor input_;
  torch::Tensor target_;
  std::int64_t size_ = 0;
};

/// What a run trains on and what it never sees.
struct Dataset {
  Samples train;
  /// A tenth: the last windows of a text; a seeded choice of rows otherwise. Empty when the order is sequential, and
  /// for a single sample.
  Samples held_out;
  /// One line for people: source, number of samples.
  std::string description;
};

/// Reads the data that `config` names, in the shape that `input` asks for.
///
/// digits       8 x 8 images of 0 .. 16, divided by 16
/// text         bytes as tokens; default: the files in /usr/share/common-licenses, sorted by name
/// csv:FILE     numbers with the label (0 .. classes - 1) in the last column; a first line of words is skipped
/// synthetic    4096 normal vectors whose label is the largest of their first `classes` entries, or 65536 tokens of a
///              noisy linear recurrence: no file needed, and something to learn
///
/// Throws  ConfigError if the source is unknown or does not fit the model;
///         FileError naming file, line and value if a file is missing, empty, too short, binary or malformed
[[nodiscard]] Dataset load_dataset(const DataConfig& config, const InputSpec& input, std::uint64_t seed);

enum class BatchOrder { kShuffled, kSequential };

/// Which samples each step trains on. kSequential: step t takes samples t * batch .. t * batch + batch - 1, wrapping
/// round at the end. kShuffled: the same over a sequence of permutations, one per epoch, drawn from `seed`; no sample
/// comes twice in an epoch.
/// Threads   one stream is used by one thread (it remembers the permutation of the last epoch).
class BatchStream {
 public:
  /// Throws ConfigError if there are no samples or `batch` is below 1.
  BatchStream(Samples samples, BatchOrder order, std::uint64_t seed, std::int64_t batch);

  /// Sample numbers of step `step` (from 0).
  [[nodiscard]] std::vector<std::int64_t> indices(std::int64_t step);
  [[nodiscard]] Batch at(std::int64_t step);
  /// Steps after which every sample has come `epochs` times (rounded up).
  [[nodiscard]] std::int64_t steps_for(std::int64_t epochs) const noexcept;

 private:
  Samples samples_;
  BatchOrder order_;
  std::uint64_t seed_;
  std::int64_t batch_;
  std::optional<std::pair<std::int64_t, std::vector<std::int64_t>>> epoch_;
};

/// The order that `data.order` names.
[[nodiscard]] BatchOrder batch_order(const DataConfig& config);

/// A permutation of 0 .. count - 1: the same for the same (seed, stream) on every machine.
[[nodiscard]] std::vector<std::int64_t> make_permutation(std::int64_t count, std::uint64_t seed, std::uint64_t stream);

}  // namespace tessera::train
