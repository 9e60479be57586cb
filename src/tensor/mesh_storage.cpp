// SPDX-License-Identifier: Apache-2.0
// Making mesh tensors: storage, keys, sizes and strides.
#include "tensor/mesh_storage.h"

#include <ATen/ops/empty.h>
#include <c10/core/TensorImpl.h>

#include "tensor/decision_cache.h"
#include "tensor/layout.h"
#include "tensor/recompute.h"
#include "tensor/stale_read.h"

namespace tessera::tensor {
namespace {

c10::DispatchKeySet keys_for(c10::Device device) {
  // The autocast key of the real device makes autocast see mesh tensors as it sees the shards.
  const auto autocast = device.is_cuda() ? c10::DispatchKey::AutocastCUDA : c10::DispatchKey::AutocastCPU;
  return c10::DispatchKeySet(kMeshKey) | c10::DispatchKeySet(autocast);
}

/// `strides` null: row-major.
at::Tensor make_around(at::Tensor local, const Placements& placements, const Mesh& mesh, at::IntArrayRef sizes,
                       const at::IntArrayRef* strides, std::int64_t offset) {
  // Lazy conjugation would stay in the shard, where collectives do not see it.
  if (local.is_conj() || local.is_neg()) [[unlikely]]
    local = local.resolve_conj().resolve_neg();
  const auto dtype = local.dtype();
  auto impl = c10::make_intrusive<c10::TensorImpl>(
      c10::Storage(c10::make_intrusive<MeshStorage>(std::move(local), placements, mesh)), keys_for(mesh.device()), dtype);
  if (strides == nullptr) {
    impl->set_sizes_contiguous(sizes);
  } else {
    impl->set_sizes_and_strides(sizes, *strides);
  }
  // Autograd finds what was written into a view by its strides and its offset.
  if (offset != 0) impl->set_storage_offset(offset);
  return at::Tensor(std::move(impl));
}

}  // namespace

MeshStorage::MeshStorage(at::Tensor local, const Placements& placements, const Mesh& mesh)
    : c10::StorageImpl(use_byte_size_t(), 0, at::DataPtr(nullptr, mesh.device()), nullptr, false),
      local_(std::move(local)),
      placements_(placements),
      mesh_(mesh) {
  made_in_step = MeshRuntime::of(mesh).stages.step_number();
  release_data_and_set_meta_custom_data_ptr_error_msg_(
      "this is a mesh tensor: its data is spread over ranks; read it with tessera::local(), tessera::full() or "
      "tessera::print(); to save modules and optimizers, call tessera::save(folder, state) on every rank; for torch::save of a "
      "module, tessera::gather() a clone of it and save that");
}

/// release_resources() is for a storage that weak pointers still know.
MeshStorage::~MeshStorage() {
  if (value != nullptr) leave_value();
}

void MeshStorage::replace(at::Tensor local, const Placements& placements) {
  if (value != nullptr && !local.is_same(local_)) leave_value();
  local_ = std::move(local);
  placements_ = placements;
}

void MeshStorage::leave_value() { std::exchange(value, nullptr)->leave_storage(local_); }

void MeshStorage::note_write() {
  family.note_write();
  ++root().writes_;
  if (copy != nullptr) copy->seen = num_writes();
  if (memory == nullptr) return;
  ++memory->num_writes;
  if (const auto owner = memory->owner.lock()) owner->keep();
}

void MeshStorage::count_writes_with(const at::Tensor& base) {
  root_ = storage_of(base).root_ ? storage_of(base).root_ : std::optional(base.storage().getWeakStorageImpl());
}

void MeshStorage::leave_base() {
  is_view = false;
  copy = nullptr;
  root_.reset();
  family.reset();
}

void MeshStorage::refuse_stale() const {
  throw StaleRead(
      "a view of a partial sum, or the sum itself, missed a write: to read one of the two, it was reduced into memory of its "
      "own, and the other was written since; redistribute the sum before views are made of it, or write with an "
      "out-of-place operator");
}

void MeshStorage::drop(Completion restore) {
  local_.reset();
  completion_ = std::move(restore);
}

void MeshStorage::refill(at::Tensor local) {
  local_ = std::move(local);
  completion_ = nullptr;
}

void MeshStorage::take_back(at::Tensor local, const Placements& placements) {
  completion_ = nullptr;
  deferred_ = nullptr;
  replace(std::move(local), placements);
}

void MeshStorage::reduce_with_others() {
  if (!reducer_) return;
  const auto reducer = std::exchange(reducer_, nullptr);
  reducer();
}

void MeshStorage::complete() {
  const Completion completion = std::exchange(completion_, nullptr);
  completion();
}

void MeshStorage::defer(const std::shared_ptr<Deferred>& work) {
  deferred_ = work;
  set_completion([work] { work->run(); });
}

void MeshStorage::release_resources() {
  c10::StorageImpl::release_resources();
  if (value != nullptr) leave_value();
  local_.reset();
  copy = nullptr;
  family.reset();
  completion_ = nullptr;
  deferred_ = nullptr;
  reducer_ = nullptr;
}

at::Tensor wrap(at::Tensor local, const Placements& placements, const Mesh& mesh, at::IntArrayRef global_sizes) {
  const bool contiguous = shows_row_major(local) || strides_are_ambiguous(placements, mesh, global_sizes);
  const std::int64_t offset = local.storage_offset();
  if (contiguous) return make_around(std::move(local), placements, mesh, global_sizes, nullptr, offset);
  const Sizes strides = global_strides(local, global_sizes);
  return wrap_as(std::move(local), placements, mesh, global_sizes, strides, offset);
}

at::Tensor wrap_as(at::Tensor local, const Placements& placements, const Mesh& mesh, at::IntArrayRef global_sizes,
                   at::IntArrayRef global_strides, std::int64_t offset) {
  return make_around(std::move(local), placements, mesh, global_sizes, &global_strides, offset);
}

at::Tensor wrap_absent(at::IntArrayRef global_sizes, at::IntArrayRef global_strides, std::int64_t offset,
                       at::ScalarType dtype, const Placements& placements, const Mesh& mesh) {
  at::Tensor local = at::empty(local_sizes(global_sizes, placements, mesh), at::TensorOptions(at::kMeta).dtype(dtype));
  const auto type = local.dtype();
  auto impl = c10::make_intrusive<c10::TensorImpl>(
      c10::Storage(c10::make_intrusive<MeshStorage>(std::move(local), placements, mesh)), keys_for(mesh.device()), type);
  impl->set_sizes_and_strides(global_sizes, global_strides);
  if (offset != 0) impl->set_storage_offset(offset);
  return at::Tensor(std::move(impl));
}

void keep_keys(const at::Tensor& view, const at::Tensor& base) {
  c10::TensorImpl* impl = view.unsafeGetTensorImpl();
  const auto with_keys = c10::make_intrusive<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(view.storage()),
                                                              base.key_set(), view.dtype());
  with_keys->set_sizes_and_strides(view.sizes(), view.strides(), view.storage_offset());
  impl->shallow_copy_from(with_keys);
}

at::Tensor share(const at::Tensor& tensor) {
  // Made under c10::InferenceMode, tensors have no version counter.
  const c10::VariableVersion version =
      tensor.is_inference() ? c10::VariableVersion(c10::VariableVersion::DISABLED) : c10::VariableVersion(0);
  return at::Tensor(tensor.unsafeGetTensorImpl()->shallow_copy_and_detach(version,
                                                                          /*allow_tensor_metadata_change=*/true));
}

}  // namespace tessera::tensor
