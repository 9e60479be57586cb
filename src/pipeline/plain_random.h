// SPDX-License-Identifier: Apache-2.0
// Numbers that a micro-batch draws from LibTorch's default generator, whichever rank runs it when.
#pragma once

#include <ATen/CPUGeneratorImpl.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace tessera::pipeline {

/// Ranks run pieces of micro-batches in different orders, and one generator for all would give each rank other numbers. So
/// while a micro-batch runs, the default generator of the CPU stands where that micro-batch left it. The first goes on where
/// the generator stood before the step; the others start at seeds that follow from there. Of a single micro-batch, and of
/// ranks that are threads and share the generator, it is left alone.
class PlainRandom {
 public:
  PlainRandom(int num_microbatches, bool is_shared);

  /// While it lives, the micro-batch draws.
  class Drawing {
   public:
    Drawing(PlainRandom& random, int microbatch) : random_(random), microbatch_(microbatch) { random_.enter(microbatch_); }
    ~Drawing() { random_.leave(microbatch_); }
    Drawing(const Drawing&) = delete;
    Drawing& operator=(const Drawing&) = delete;

   private:
    PlainRandom& random_;
    int microbatch_;
  };

  /// The step is done: the generator goes on behind the last micro-batch that drew.
  void finish() const;
  [[nodiscard]] bool is_shared() const noexcept { return is_shared_; }
  /// Somebody in this process drew from the generator since.
  [[nodiscard]] bool has_moved() const;

 private:
  struct State {
    at::mt19937 engine;
    std::optional<float> next_float;
    std::optional<double> next_double;
  };
  static State take();
  static void put(const State& state);
  static bool equal(const State& a, const State& b);
  [[nodiscard]] State start_of(int microbatch) const;
  void enter(int microbatch);
  void leave(int microbatch);

  bool is_shared_;
  State before_;
  State outside_;
  State entered_;
  std::vector<std::optional<State>> states_;  ///< of micro-batches that drew; empty: the generator is left alone
  std::uint64_t seed_ = 0;
};

}  // namespace tessera::pipeline
