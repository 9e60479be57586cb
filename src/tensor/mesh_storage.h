// SPDX-License-Identifier: Apache-2.0
// What stands behind a mesh tensor: a StorageImpl that owns the local shard and says how it lies on the mesh.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/StorageImpl.h>

#include <functional>
#include <memory>
#include <optional>

#include "tensor/deferred.h"
#include "tensor/view_copy.h"
#include "tensor/view_family.h"
#include "tessera/mesh/mesh.h"
#include "tessera/tensor/recompute.h"

namespace tessera::tensor {

class ActivationBudget;
class GatherAhead;

/// A collective that is filling the local shard; run once, by the first reader.
using Completion = std::function<void()>;

class Value;

/// Memory that a tensor and its views have in common, as far as recomputation must know: how often it was written.
struct SharedMemory {
  std::uint32_t num_writes = 0;
  std::weak_ptr<Value> owner;  ///< the value that is no view; empty if the tensor is no value
  std::int64_t bytes = 0;      ///< counted under a budget: of the largest shard, so that all ranks decide alike
};

/// A part of a module whose activations are dropped after forward together.
struct Block {
  Recompute recompute;
  std::shared_ptr<ActivationBudget> budget;  ///< of all blocks of the module; null: none
};

/// Storage of a mesh tensor. TensorImpls that share it (detach, saved variables) see the same shard: when a partial
/// value is reduced, it is reduced once for all of them.
class MeshStorage final : public c10::StorageImpl {
 public:
  /// `local`: this rank's shard; a meta tensor of its sizes if this rank has no data.
  MeshStorage(at::Tensor local, const Placements& placements, const Mesh& mesh);
  ~MeshStorage() override;
  MeshStorage(const MeshStorage&) = delete;
  MeshStorage& operator=(const MeshStorage&) = delete;

  /// The local shard, after whatever fills it has finished. Throws ShapeError if a write to a view or base missed it.
  [[nodiscard]] const at::Tensor& local() {
    if (completion_) [[unlikely]] complete();
    if (family.missed_a_write()) [[unlikely]] refuse_stale();
    if (copy != nullptr && copy->seen != num_writes()) [[unlikely]] read_base_again(*this, local_);
    return local_;
  }
  /// The local shard as it is, for those who manage completions themselves.
  [[nodiscard]] const at::Tensor& local_unfinished() const noexcept { return local_; }
  [[nodiscard]] const Placements& placements() const noexcept { return placements_; }
  [[nodiscard]] const Mesh& mesh() const noexcept { return mesh_; }

  /// Replaces shard and placements by others of the same value.
  void replace(at::Tensor local, const Placements& placements);
  /// Says that `completion` must run before the shard may be read.
  void set_completion(Completion completion) { completion_ = std::move(completion); }
  /// Says that `work` fills the shard's memory, and runs before the shard may be read. Views share it.
  void defer(const std::shared_ptr<Deferred>& work);
  /// What was deferred and has not run; null: nothing.
  [[nodiscard]] std::shared_ptr<Deferred> deferred() const noexcept {
    return deferred_ != nullptr && !deferred_->done() ? deferred_ : nullptr;
  }
  /// Called before a partial value is reduced on demand: whoever batches reductions gets the chance to do it.
  void set_reducer(std::function<void()> reducer) { reducer_ = std::move(reducer); }
  /// Runs and clears the hook of set_reducer, if there is one.
  void reduce_with_others();

  /// The step in which this value, or what it is a view of, was made: StageRuntime::step_number().
  std::uint32_t made_in_step = 0;
  /// Of a view that has memory of its own, since it had to be made from gathered data; null: none.
  std::unique_ptr<ViewCopy> copy;
  /// A view: its memory is part of another tensor's.
  bool is_view = false;
  /// Of a partial value: whoever else has its memory, or had it.
  ViewFamily family;
  /// Bit i: sharded along axis i to save memory only. Whoever computes with the value gathers it for that use and
  /// leaves the other operands where they are. Views inherit it.
  unsigned gathered_at_use = 0;
  /// Who gathers it, possibly before it is used; null: gathered when it is used. Views inherit it.
  std::shared_ptr<GatherAhead> gather_ahead;
  /// How what is computed from this parameter should lie on some axes (bit i of `axes`: axis i); null: as it comes out.
  struct OutputPlan {
    unsigned axes = 0;
    Placements placements;
  };
  std::shared_ptr<const OutputPlan> output_plan;
  /// Pipeline stages. Of the stages on which the value lies, `home` are those that have it of their own (0: all of them);
  /// the others hold copies that they were sent when the tensor had version `copied_version`; no step failed since.
  struct OnStages {
    StageSet pinned = 0;  ///< not 0: a parameter, or a view of one, that is used where it lies
    StageSet home = 0;
    std::uint32_t copied_version = 0;
    std::uint32_t copied_after_failure = 0;  ///< the last failed step then
  };
  OnStages stage;
  /// How tensors made after this one (zeros_like: the state of an optimizer) lie; null: as this one does.
  std::shared_ptr<const Placements> state_placements;
  /// A parameter, or what was computed from parameters alone: the block of its module, and which of its parameters.
  struct OfBlock {
    std::shared_ptr<const Block> block;
    int parameter = 0;
  };
  OfBlock of_block;
  /// How the shard came to be, if it is one that can be dropped; see tensor/recompute.h.
  std::shared_ptr<Value> value;
  /// Null until recomputation asks for it.
  std::shared_ptr<SharedMemory> memory;

  /// The shard was written in place.
  void note_write();
  /// Writes to the tensor and to all that are views of the same.
  [[nodiscard]] std::uint32_t num_writes() const noexcept { return root().writes_; }
  /// A view of `base` counts writes together with it.
  void count_writes_with(const at::Tensor& base);
  /// No view any more: what is written is seen by nobody else.
  void leave_base();
  /// Frees the shard; `restore` must refill it before it may be read.
  void drop(Completion restore);
  void refill(at::Tensor local);
  /// The shard is `local` again, whatever was to fill or to replace it.
  void take_back(at::Tensor local, const Placements& placements);

  void release_resources() override;

 private:
  void complete();
  /// Of the tensor that this is a view of. Released when that tensor is gone, but still a place to count.
  [[nodiscard]] const MeshStorage& root() const noexcept {
    return root_ ? *static_cast<const MeshStorage*>(root_->_unsafe_get_target()) : *this;
  }
  [[noreturn]] void refuse_stale() const;
  void leave_value();

  at::Tensor local_;
  Placements placements_;
  Mesh mesh_;
  Completion completion_;
  std::shared_ptr<Deferred> deferred_;
  std::function<void()> reducer_;
  std::optional<c10::weak_intrusive_ptr<c10::StorageImpl>> root_;  ///< nothing: no view
  mutable std::uint32_t writes_ = 0;
};

/// The dispatch key of mesh tensors. Its autograd and in-place keys come with it.
inline constexpr c10::DispatchKey kMeshKey = c10::DispatchKey::PrivateUse3;

[[nodiscard]] inline bool is_mesh(const at::TensorImpl* impl) noexcept {
  return impl->key_set().has_backend(c10::BackendComponent::PrivateUse3Bit);
}
[[nodiscard]] inline bool is_mesh(const at::Tensor& tensor) noexcept {
  return tensor.defined() && is_mesh(tensor.unsafeGetTensorImpl());
}
/// Precondition: is_mesh(tensor).
[[nodiscard]] inline MeshStorage& storage_of(const at::TensorImpl* impl) noexcept {
  return *static_cast<MeshStorage*>(impl->unsafe_storage().unsafeGetStorageImpl());
}
[[nodiscard]] inline MeshStorage& storage_of(const at::Tensor& tensor) noexcept {
  return storage_of(tensor.unsafeGetTensorImpl());
}

/// True if a shard shows that it is row-major. Of one element per channel it may be channels-last at once: kernels take it
/// for that.
[[nodiscard]] inline bool shows_row_major(const at::Tensor& local) {
  return local.is_contiguous() && !local.unsafeGetTensorImpl()->is_strides_like_channels_last();
}

/// Makes a mesh tensor of `global_sizes` around `local`. Strides follow the local layout, and are row-major where some
/// shard does not tell its own (strides_are_ambiguous).
[[nodiscard]] at::Tensor wrap(at::Tensor local, const Placements& placements, const Mesh& mesh,
                              at::IntArrayRef global_sizes);

/// The same with strides and an offset that are known: `local` lies in the order of these strides.
[[nodiscard]] at::Tensor wrap_as(at::Tensor local, const Placements& placements, const Mesh& mesh,
                                 at::IntArrayRef global_sizes, at::IntArrayRef global_strides, std::int64_t offset = 0);

/// The same where this rank has no data: a tensor of that metadata around a meta tensor.
[[nodiscard]] at::Tensor wrap_absent(at::IntArrayRef global_sizes, at::IntArrayRef global_strides, std::int64_t offset,
                                     at::ScalarType dtype, const Placements& placements, const Mesh& mesh);

/// Under c10::InferenceMode new tensors are inference tensors, but a view of a normal one must be normal: gives `view` the
/// keys of `base`.
void keep_keys(const at::Tensor& view, const at::Tensor& base);

/// Another tensor on the same storage and metadata (detach, alias).
[[nodiscard]] at::Tensor share(const at::Tensor& tensor);

}  // namespace tessera::tensor
