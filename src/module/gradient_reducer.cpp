// SPDX-License-Identifier: Apache-2.0
// Gradient buckets.
#include "module/gradient_reducer.h"

#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>

#include "tensor/mesh_storage.h"

namespace tessera::module {
namespace {

/// Bit i set: partial on axis i.
unsigned partial_axes(const Placements& placements) {
  unsigned axes = 0;
  for (int axis = 0; axis < placements.size(); ++axis) {
    if (placements[axis] == Partial()) axes |= 1U << static_cast<unsigned>(axis);
  }
  return axes;
}

Placements without_partial(Placements placements) {
  for (int axis = 0; axis < placements.size(); ++axis) {
    if (placements[axis].is_partial()) placements[axis] = Replicate();
  }
  return placements;
}

/// Gradients that one collective can carry together.
struct Batch {
  unsigned axes = 0;
  at::ScalarType dtype = at::kFloat;
  std::vector<at::Tensor> gradients;
};

std::vector<Batch> group(const std::vector<at::Tensor>& gradients) {
  std::vector<Batch> batches;
  for (const at::Tensor& gradient : gradients) {
    const unsigned axes = partial_axes(tensor::storage_of(gradient).placements());
    if (axes == 0) continue;
    const auto fits = [&](const Batch& batch) {
      return batch.axes == axes && batch.dtype == gradient.scalar_type();
    };
    auto found = std::find_if(batches.begin(), batches.end(), fits);
    if (found == batches.end()) found = batches.insert(batches.end(), Batch{axes, gradient.scalar_type(), {}});
    found->gradients.push_back(gradient);
  }
  return batches;
}

/// Memory that may be reduced in place: dense, and nobody else's. A view elsewhere may still count as partial.
at::Tensor reducible(const at::Tensor& local) {
  const bool exclusive = local.storage().use_count() == 1;
  return local.is_non_overlapping_and_dense() ? (exclusive ? local : local.clone()) : local.contiguous();
}

void start(const Batch& batch) {
  const Mesh mesh = tensor::storage_of(batch.gradients.front()).mesh();
  std::vector<at::Tensor> memory;
  std::vector<at::Tensor> locals;
  for (const at::Tensor& gradient : batch.gradients) {
    locals.push_back(reducible(tensor::storage_of(gradient).local()));
    memory.push_back(locals.back().as_strided({locals.back().numel()}, {1}));
  }
  const auto pending =
      std::make_shared<comm::Pending>(mesh.across(batch.axes).all_reduce_coalesced(std::move(memory)));
  for (std::size_t i = 0; i < batch.gradients.size(); ++i) {
    tensor::MeshStorage& storage = tensor::storage_of(batch.gradients[i]);
    storage.replace(std::move(locals[i]), without_partial(storage.placements()));
    storage.set_completion([pending] { pending->wait(); });
  }
}

class Hook final : public torch::autograd::PostAccumulateGradHook {
 public:
  explicit Hook(std::shared_ptr<GradientReducer> reducer) : reducer_(std::move(reducer)) {}
  void operator()(const torch::autograd::Variable& parameter) override { reducer_->on_gradient(parameter.grad()); }
  [[nodiscard]] const std::shared_ptr<GradientReducer>& reducer() const noexcept { return reducer_; }

 private:
  std::shared_ptr<GradientReducer> reducer_;
};

}  // namespace

void GradientReducer::on_gradient(const at::Tensor& gradient) {
  if (!synchronising_ || !tensor::is_mesh(gradient)) return;
  tensor::MeshStorage& storage = tensor::storage_of(gradient);
  if (partial_axes(storage.placements()) == 0) return;
  bucket_.push_back(gradient);
  bucket_bytes_ += static_cast<std::int64_t>(storage.local_unfinished().nbytes());
  storage.set_reducer([self = weak_from_this()] {
    if (const auto reducer = self.lock()) reducer->flush();
  });
  if (bucket_bytes_ >= (first_bucket_sent_ ? options_.bucket_bytes : options_.first_bucket_bytes)) flush();
  flush_when_backward_ends();
}

void GradientReducer::flush() {
  const std::vector<at::Tensor> gradients = std::exchange(bucket_, {});
  bucket_bytes_ = 0;
  first_bucket_sent_ = true;
  for (const at::Tensor& gradient : gradients) tensor::storage_of(gradient).set_reducer(nullptr);
  for (const Batch& batch : group(gradients)) start(batch);
}

void GradientReducer::flush_when_backward_ends() {
  if (flush_queued_) return;
  flush_queued_ = true;
  torch::autograd::Engine::get_default_engine().queue_callback([self = shared_from_this()] {
    self->flush_queued_ = false;
    self->flush();
    self->first_bucket_sent_ = false;
  });
}

std::shared_ptr<GradientReducer> reducer_of(const at::Tensor& parameter) {
  const auto* meta = torch::autograd::impl::get_autograd_meta(parameter);
  if (meta == nullptr || meta->post_acc_grad_hooks_ == nullptr) return nullptr;
  const auto* hook = dynamic_cast<const Hook*>(meta->post_acc_grad_hooks_.get());
  return hook == nullptr ? nullptr : hook->reducer();
}

void attach(const at::Tensor& parameter, std::shared_ptr<GradientReducer> reducer) {
  torch::autograd::impl::set_post_acc_grad_hooks(parameter, std::make_unique<Hook>(std::move(reducer)));
}

}  // namespace tessera::module
