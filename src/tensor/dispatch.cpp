// SPDX-License-Identifier: Apache-2.0
// The boxed kernels behind every operator on mesh tensors, and their registration.
#include "tensor/dispatch.h"

#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <mutex>

#include "tensor/call.h"
#include "tensor/gradient_sum.h"
#include "tensor/stale_read.h"
#include "tessera/base/error.h"

namespace tessera::tensor {
namespace {

using Stack = torch::jit::Stack;

/// In-place changes of metadata (t_(), squeeze_()): the local tensor changes, and the global one is wrapped anew.
void run_metadata_change(const c10::OperatorHandle& op, const OperatorInfo& info, Stack& stack) {
  const at::Tensor self = stack[stack.size() - info.arguments.size()].toTensor();
  auto functional = c10::Dispatcher::singleton().findSchema({base_name(info.name), op.schema().overload_name()});
  // transpose_ goes with transpose.int.
  if (!functional) functional = c10::Dispatcher::singleton().findSchema({base_name(info.name), "int"});
  if (!functional) {
    throw ShapeError(fmt::format("{} is not supported on a mesh tensor; use its out-of-place form", info.name));
  }
  functional->callBoxed(stack);
  self.unsafeGetTensorImpl()->shallow_copy_from(stack.back().toTensor().getIntrusivePtr());
  stack.back() = self;
}

/// One per operator, so that what is known of the schema is at hand without a look-up.
class MeshKernel final : public c10::OperatorKernel {
 public:
  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
    const OperatorInfo& info = info_of(op);
    if (info.changes_metadata) [[unlikely]] {
      run_metadata_change(op, info, *stack);
      return;
    }
    try {
      Call(op, info, *stack).run();
    } catch (const StaleRead& error) {
      throw ShapeError(fmt::format("{}: {}", info.name, error.what()));
    }
  }

 private:
  const OperatorInfo& info_of(const c10::OperatorHandle& op) {
    std::call_once(once_, [&] { info_ = std::make_unique<OperatorInfo>(op); });
    return *info_;
  }
  std::once_flag once_;
  std::unique_ptr<OperatorInfo> info_;
};

bool is_on_a_stage(const at::Tensor& tensor) {
  if (!is_mesh(tensor)) return false;
  const Placements& placements = storage_of(tensor).placements();
  return std::any_of(placements.begin(), placements.end(), [](Placement placement) { return placement.is_stage(); });
}

/// add_: what autograd adds up between two nodes may need other memory.
class AddKernel final : public c10::OperatorKernel {
 public:
  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
    const at::Tensor& sum = stack->at(stack->size() - 3).toTensor();
    const at::Tensor& gradient = stack->at(stack->size() - 2).toTensor();
    const bool by_autograd = autograd_adds_up() && stack->back().toScalar().equal(1);
    if (by_autograd && lie_on_different_stages(sum, gradient)) {
      add_up_across_stages(sum, gradient);
      stack->erase(stack->end() - 2, stack->end());
      return;
    }
    if (by_autograd) own_memory(sum);
    in_place_(op, keys, stack);
  }

 private:
  MeshKernel in_place_;
};

bool is_same_memory(const at::Tensor& first, const at::Tensor& second) {
  return first.storage().unsafeGetStorageImpl() == second.storage().unsafeGetStorageImpl() &&
         first.storage_offset() == second.storage_offset() && first.sizes() == second.sizes() &&
         first.strides() == second.strides();
}

/// equal: MultiheadAttention asks whether its query is its key. On a pipeline stage the answer would have to be told to all
/// others, for which most schedules cannot wait; of a tensor and itself it is known.
class EqualKernel final : public c10::OperatorKernel {
 public:
  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
    const at::Tensor& first = stack->at(stack->size() - 2).toTensor();
    const at::Tensor& second = stack->back().toTensor();
    if (is_on_a_stage(first) && is_same_memory(first, second)) {
      stack->erase(stack->end() - 2, stack->end());
      stack->emplace_back(true);
      return;
    }
    compare_(op, keys, stack);
  }

 private:
  MeshKernel compare_;
};

/// detach and alias: the same storage, so that a partial value is still reduced once for all.
class SharingKernel final : public c10::OperatorKernel {
 public:
  void operator()(const c10::OperatorHandle&, c10::DispatchKeySet, Stack* stack) {
    stack->back() = share(stack->back().toTensor());
  }
};

bool shares_storage(const c10::OperatorName& name) { return name.name == "aten::detach" || name.name == "aten::alias"; }

template <class Kernel>
torch::CppFunction boxed() {
  return torch::CppFunction::makeFromBoxedFunctor(std::make_unique<Kernel>());
}

torch::CppFunction kernel_of(const c10::OperatorName& name) {
  if (shares_storage(name)) return boxed<SharingKernel>();
  if (name.name == "aten::equal") return boxed<EqualKernel>();
  return name.name == "aten::add_" && name.overload_name == "Tensor" ? boxed<AddKernel>() : boxed<MeshKernel>();
}

std::string local_name(const c10::OperatorName& name) {
  const std::string base = name.name.substr(name.name.find("::") + 2);
  return name.overload_name.empty() ? base : base + "." + name.overload_name;
}

/// A backend fallback alone would not do: alias kernels (CompositeExplicitAutograd) win over it and recurse.
void register_all(torch::Library& aten) {
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const c10::OperatorName& name : dispatcher.getAllOpNames()) {
    if (!name.name.starts_with("aten::")) continue;
    const auto op = dispatcher.findOp(name);
    if (!op || !op->hasSchema() || op->hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd)) continue;
    if (op->hasKernelForDispatchKey(kMeshKey)) continue;  // a composite of ours
    aten.impl(local_name(name).c_str(), kernel_of(name));
  }
}

/// Operators of other namespaces (a user's TORCH_LIBRARY): gathered, replicated and counted.
void other_namespaces(const c10::OperatorHandle& op, Stack* stack) {
  const OperatorInfo info(op);
  Call(op, info, *stack).run();
}

/// set_data between plain and mesh tensors: the metadata that it copies is all there is. Module::clone needs it.
bool can_take_data_of(const at::Tensor&, const at::Tensor& data) { return data.layout() == at::kStrided; }

}  // namespace

void register_operators() {
  static std::once_flag once;
  std::call_once(once, [] {
    static torch::Library aten(torch::Library::IMPL, "aten", kMeshKey, __FILE__, __LINE__);
    static torch::Library any(torch::Library::IMPL, "_", kMeshKey, __FILE__, __LINE__);
    register_composites();
    register_all(aten);
    static torch::Library autograd(torch::Library::IMPL, "aten", c10::DispatchKey::AutogradPrivateUse3, __FILE__,
                                   __LINE__);
    for (torch::Library* library : {&aten, &autograd}) {
      library->impl("_has_compatible_shallow_copy_type", can_take_data_of);
    }
    any.fallback(torch::CppFunction::makeFromBoxedFunction<&other_namespaces>());
  });
}

}  // namespace tessera::tensor
