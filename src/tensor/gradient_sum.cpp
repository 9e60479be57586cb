// SPDX-License-Identifier: Apache-2.0
// Sums of gradients that autograd makes between nodes.
#include "tensor/gradient_sum.h"

#include <ATen/core/NamedTensor.h>
#include <ATen/ops/add.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/graph_task.h>

#include "tensor/decision_cache.h"
#include "tensor/mesh_storage.h"

namespace tessera::tensor {

bool autograd_adds_up() {
  // A node runs with names off (torch/csrc/autograd/function.h), the engine between nodes with names on.
  if (torch::autograd::get_current_graph_task_id() == -1 || !at::NamesMode::is_enabled()) return false;
  // Hooks run there too, and mean what they write.
  const auto node = torch::autograd::get_current_node();
  return node == nullptr || (node->pre_hooks().empty() && node->post_hooks().empty() && node->tensor_pre_hooks().empty() &&
                             node->retains_grad_hooks().empty());
}

bool lie_on_different_stages(const at::Tensor& sum, const at::Tensor& gradient) {
  if (!is_mesh(sum) || !is_mesh(gradient)) return false;
  const MeshStorage& storage = storage_of(sum);
  const int axis = MeshRuntime::of(storage.mesh()).stages.axis();
  return axis >= 0 && !(storage.placements()[axis] == storage_of(gradient).placements()[axis]);
}

void add_up_across_stages(const at::Tensor& sum, const at::Tensor& gradient) {
  const at::Tensor result = at::add(sum, gradient);
  MeshStorage& storage = storage_of(sum);
  storage.replace(storage_of(result).local(), storage_of(result).placements());
  storage.stage = storage_of(result).stage;
  storage.leave_base();
  sum.unsafeGetTensorImpl()->set_sizes_and_strides(result.sizes(), result.strides(), result.storage_offset());
}

// What ranks decide from must not depend on how many users a shard has: only memory differs.
void own_memory(const at::Tensor& sum) {
  if (!is_mesh(sum)) return;
  MeshStorage& storage = storage_of(sum);
  const at::Tensor& local = storage.local();
  storage.leave_base();
  if (local.is_meta() || (local.use_count() == 1 && local.storage().use_count() == 1)) return;
  storage.replace(local.clone(), storage.placements());
}

}  // namespace tessera::tensor
