// SPDX-License-Identifier: Apache-2.0
// Decisions remembered per mesh and rank: operator + specs + the scalar arguments that rules may look at.
#pragma once

#include <c10/util/SmallVector.h>

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "tensor/philox.h"
#include "tensor/recompute.h"
#include "tensor/rule.h"
#include "tensor/stage_runtime.h"
#include "tessera/tensor/mesh_tensor.h"
#include "tessera/tensor/random.h"

namespace tessera::tensor {

/// The words that identify a call, gathered without allocation for common calls.
class CallKey {
 public:
  void add(std::int64_t word) { words_.push_back(word); }
  void add(at::IntArrayRef words) {
    words_.push_back(static_cast<std::int64_t>(words.size()));
    words_.append(words.begin(), words.end());
  }
  void add(const Placements& placements);
  void add_argument(const c10::IValue& value);
  [[nodiscard]] std::span<const std::int64_t> words() const noexcept { return {words_.data(), words_.size()}; }
  [[nodiscard]] std::uint64_t hash() const noexcept;

 private:
  c10::SmallVector<std::int64_t, 48> words_;
};

/// What the tensor floor knows about one mesh on one rank.
class MeshRuntime {
 public:
  /// The runtime attached to `mesh`, made on first use.
  [[nodiscard]] static MeshRuntime& of(const Mesh& mesh);
  explicit MeshRuntime(const Mesh& mesh) : stages(mesh) {}

  /// Null if the call is new.
  [[nodiscard]] Decision* find(std::span<const std::int64_t> key);
  Decision& remember(std::span<const std::int64_t> key, Decision decision);

  void count_fallback(const std::string& operator_name) { ++fallbacks_[operator_name]; }
  [[nodiscard]] const std::map<std::string, std::int64_t>& fallbacks() const noexcept { return fallbacks_; }

  void count_gather(const std::string& operator_name, std::int64_t bytes) {
    GatherCount& count = gathers_[operator_name];
    ++count.times;
    count.bytes += bytes;
  }
  [[nodiscard]] const std::map<std::string, GatherCount>& gathers() const noexcept { return gathers_; }

  void note_sharded(const std::string& operator_name) { sharded_.insert(operator_name); }
  [[nodiscard]] const std::set<std::string>& sharded_operators() const noexcept { return sharded_; }

  /// The words of the next random operator.
  [[nodiscard]] PhiloxStream next_stream() noexcept { return {random.seed, random.num_draws++}; }

  /// What follows belongs to `microbatch`, or to none if it is null: it counts messages and random numbers there.
  /// Returns what was before.
  Microbatch* enter(Microbatch* microbatch) noexcept;

  RandomState random;
  StageRuntime stages;
  RecomputeRuntime recompute;

 private:
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::span<const std::int64_t> words) const noexcept;
    std::size_t operator()(const std::vector<std::int64_t>& words) const noexcept {
      return (*this)(std::span<const std::int64_t>(words));
    }
  };
  struct Equal {
    using is_transparent = void;
    template <class A, class B>
    bool operator()(const A& a, const B& b) const noexcept {
      return std::equal(a.begin(), a.end(), b.begin(), b.end());
    }
  };
  using Decisions = std::unordered_map<std::vector<std::int64_t>, Decision, Hash, Equal>;
  Decisions decisions_;
  Decisions retired_;
  std::map<std::string, std::int64_t> fallbacks_;
  std::map<std::string, GatherCount> gathers_;
  std::set<std::string> sharded_;
  RandomState random_outside_;  ///< while `random` is that of a micro-batch
};

}  // namespace tessera::tensor
