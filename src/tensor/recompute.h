// SPDX-License-Identifier: Apache-2.0
// Activations as values that know how they came to be, so that their data can be dropped and made again.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "tensor/layout.h"
#include "tensor/mesh_storage.h"
#include "tessera/tensor/recompute.h"

namespace tessera::tensor {

class Value;

/// One call that made values, and can make them again.
class Producer {
 public:
  /// What the call read. Tensors that are no values (parameters, inputs) stay with the call itself.
  struct Input {
    std::shared_ptr<Value> value;
    std::shared_ptr<const SharedMemory> memory;
    std::uint32_t num_writes = 0;  ///< of the memory when it was read
  };

  virtual ~Producer() = default;
  /// Runs the call again; the local shards of its outputs, in order. Precondition: the inputs have data.
  [[nodiscard]] virtual std::vector<at::Tensor> run() = 0;
  /// Nobody wrote what the call read, and what has no data can be made again. Precondition: producers of inputs, which
  /// come before, were asked before.
  [[nodiscard]] bool is_repeatable();
  /// Nobody wrote what the call read.
  [[nodiscard]] bool reads_what_it_read() const;

  std::vector<Input> inputs;
  std::vector<std::weak_ptr<Value>> outputs;
  std::uint64_t order = 0;  ///< of calls
  bool is_view = false;     ///< outputs share the memory of the first input
  bool is_expensive = false;
  const char* name = "";

 private:
  bool repeatable_ = true;
};

/// The calls that must run to give `value` data, oldest first. Precondition: it can be made again.
[[nodiscard]] std::vector<std::shared_ptr<Producer>> producers_of(const Value& value);

/// Of a value: its block, and its number among the values of one run of the block.
using Place = std::pair<std::shared_ptr<const Block>, std::size_t>;

/// The shard that a call made. It lies in a storage while somebody has the tensor and the storage holds no other value:
/// what is reduced or written in place is another value from then on.
class Value : public std::enable_shared_from_this<Value> {
 public:
  Value(const at::Tensor& tensor, std::shared_ptr<Producer> producer);

  [[nodiscard]] bool has_data() const noexcept;
  [[nodiscard]] bool can_be_made_again() const noexcept { return producer_ != nullptr; }
  /// Precondition: has_data.
  [[nodiscard]] const at::Tensor& data() const noexcept;
  [[nodiscard]] const Placements& placements() const noexcept { return placements_; }
  /// Null where nobody wants to know.
  [[nodiscard]] const std::shared_ptr<SharedMemory>& memory() const noexcept { return memory_; }
  /// A mesh tensor with the data.
  [[nodiscard]] at::Tensor tensor() const;

  /// Keeps the data until nobody needs them; how they came to be is forgotten.
  void keep();
  /// Frees the data, until somebody reads them. False if they cannot be made again, and are kept.
  bool drop();
  /// The storage is about to hold something else, or to die; `data` is what it held.
  void leave_storage(const at::Tensor& data);

 private:
  friend class Producer;
  friend class RecomputeRuntime;
  friend std::vector<std::shared_ptr<Producer>> producers_of(const Value& value);
  void make_again();
  void fill(at::Tensor data);

  MeshStorage* storage_;
  std::shared_ptr<Producer> producer_;  ///< null: kept
  at::Tensor held_;                     ///< data that are not, or not only, in the storage
  std::shared_ptr<SharedMemory> memory_;
  Placements placements_;
  Mesh mesh_;
  Sizes sizes_;
  Sizes strides_;
  Place place_;
};

/// One rank's recomputation on one mesh: which block forward is in, and what was made there.
class RecomputeRuntime {
 public:
  void enable() noexcept { enabled_ = true; }
  /// Forward of a module whose plan asks for recomputation.
  [[nodiscard]] bool watches() const;
  /// Inside a block whose activations are dropped.
  [[nodiscard]] bool records() const noexcept { return block_ != nullptr && block_->recompute != Recompute::kNone; }
  [[nodiscard]] bool keeps_expensive() const noexcept {
    return records() && block_->recompute == Recompute::kSelective;
  }

  /// An operator uses parameter `parameter` of `block`. True if a run of the block begins with it.
  [[nodiscard]] bool begins(const Block& block, int parameter) const noexcept {
    return block_.get() != &block || parameter == first_parameter_;
  }
  /// A run of `block` begins: drops what the one before left, or as much as its budget asks for.
  void begin(std::shared_ptr<const Block> block, int parameter);
  /// `output`, the next one of `producer`, can be made again from now on.
  void add(const at::Tensor& output, const std::shared_ptr<Producer>& producer);
  [[nodiscard]] std::uint64_t next_order() noexcept { return next_order_++; }

  /// The shard of `reduced` is what was `from` before.
  void add_reduction(const at::Tensor& reduced, const std::shared_ptr<Value>& from);

  /// Gives `value` its data.
  void make_again(Value& value);
  [[nodiscard]] const RecomputeCounts& counts() const noexcept { return counts_; }

 private:
  bool enabled_ = false;
  bool is_running_again_ = false;
  std::shared_ptr<const Block> block_;
  int first_parameter_ = 0;
  std::vector<std::weak_ptr<Value>> made_;  ///< in this run of the block, in order
  /// What forward read after it was dropped: kept from then on.
  std::set<Place> read_later_;
  std::uint64_t next_order_ = 0;
  RecomputeCounts counts_;
};

}  // namespace tessera::tensor
