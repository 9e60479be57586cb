// SPDX-License-Identifier: Apache-2.0
// as_strided looks at memory, which a shard has otherwise: what stays inside of dims is made of slices and windows, what
// changes nothing is an alias, and the rest needs the whole.
#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "rules/composites.h"
#include "rules/families.h"
#include "rules/rows.h"
#include "tessera/base/error.h"
#include "tessera/tensor/mesh_tensor.h"

namespace tessera::rules {
namespace {

/// as_strided(self, size, stride, storage_offset) that changes nothing but the strides of dims of size 1: LibTorch marks a
/// memory format with it.
bool keeps_memory(const OpCall& call) {
  const TensorArg& tensor = call.tensor(0);
  const auto sizes = call.argument(1).toDimVector();
  const auto strides = call.argument(2).toDimVector();
  if (at::IntArrayRef(sizes) != tensor.sizes) return false;
  for (std::size_t dim = 0; dim < sizes.size(); ++dim) {
    if (sizes[dim] > 1 && strides[dim] != tensor.strides[dim]) return false;
  }
  return call.argument(3).isNone() || call.argument(3).toInt() == tensor.offset;
}

void as_strided_rows(const OpCall& call, int axis, Rows& rows) {
  if (!keeps_memory(call)) return;
  const Placement placement = call.tensor(0).placements[axis];
  if (placement.is_shard() || placement.is_partial()) add_row(call, rows, {placement}, {placement});
}

void compute_same_memory(const c10::OperatorHandle& op, const Decision&, const Mesh&, torch::jit::Stack& stack) {
  stack.emplace_back(pop_arguments(op, stack)[0].toTensor().alias());
}

/// Global strides say nothing about a shard's memory.
void localise_as_strided(const OpCall& call, Decision& decision) {
  if (keeps_memory(call)) {
    decision.compute = compute_same_memory;
    return;
  }
  const auto is_whole = [](Placement placement) { return !placement.is_shard() && !placement.is_partial(); };
  for (int axis = 0; axis < call.mesh.num_axes(); ++axis) {
    check<ShapeError>(is_whole(call.tensor(0).placements[axis]) && is_whole(decision.outputs[0][axis]),
                      "{}: as_strided has no meaning for a tensor that is {} on axis {}; redistribute it first, or use "
                      "a view operator",
                      call.schema.name(), to_string(call.tensor(0).placements[axis]),
                      call.mesh.axes()[static_cast<std::size_t>(axis)].name);
  }
}

/// A dim of a tensor whose memory as_strided looks at, and what of it is seen: one position, a range, or windows.
struct SeenDim {
  std::int64_t dim, size, stride;
  std::int64_t begin = 0;
  c10::SmallVector<std::size_t, 2> outputs = {};
};

/// Dims of more than one element from the longest stride to the shortest; nothing if elements share memory.
std::optional<std::vector<SeenDim>> nested_dims(const at::Tensor& self) {
  std::vector<SeenDim> dims;
  for (std::int64_t dim = 0; dim < self.dim(); ++dim) {
    if (self.size(dim) > 1) dims.push_back({dim, self.size(dim), self.stride(dim)});
  }
  std::sort(dims.begin(), dims.end(), [](const SeenDim& a, const SeenDim& b) { return a.stride > b.stride; });
  std::int64_t inner = 1;
  for (auto dim = dims.rbegin(); dim != dims.rend(); ++dim) {
    if (dim->stride < inner) return std::nullopt;
    inner = dim->size * dim->stride;
  }
  return dims;
}

/// Which dims of `self` as_strided looks at, if it stays inside of each of them; else nothing.
std::optional<std::vector<SeenDim>> seen_dims(const at::Tensor& self, at::IntArrayRef sizes, at::IntArrayRef strides,
                                              std::int64_t offset) {
  auto dims = nested_dims(self);
  std::int64_t left = offset - self.storage_offset();
  if (!dims || left < 0) return std::nullopt;
  for (SeenDim& dim : *dims) {
    dim.begin = left / dim.stride;
    left %= dim.stride;
  }
  if (left != 0) return std::nullopt;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] == 1) continue;
    const auto steps_along = [&](const SeenDim& dim) { return strides[i] > 0 && strides[i] % dim.stride == 0; };
    const auto found = std::find_if(dims->begin(), dims->end(), steps_along);
    if (found == dims->end() || found->outputs.size() == 2) return std::nullopt;
    found->outputs.push_back(i);
  }
  for (SeenDim& dim : *dims) {
    std::int64_t span = 1;
    for (const std::size_t i : dim.outputs) span += (sizes[i] - 1) * (strides[i] / dim.stride);
    if (dim.begin + span > dim.size) return std::nullopt;
    // Of windows, the dim inside them comes last.
    if (dim.outputs.size() == 2 && strides[dim.outputs[1]] != dim.stride) std::swap(dim.outputs[0], dim.outputs[1]);
    if (dim.outputs.size() == 2 && strides[dim.outputs[1]] != dim.stride) return std::nullopt;
  }
  return dims;
}

/// as_strided as slices and windows (`unfold`) of dims, which have rules and gradients on shards; nothing if there is no
/// such view.
std::optional<at::Tensor> as_views_of_dims(const at::Tensor& self, at::IntArrayRef sizes, at::IntArrayRef strides,
                                           std::int64_t offset) {
  if (self.numel() == 0 || c10::multiply_integers(sizes) == 0) return std::nullopt;
  const auto dims = seen_dims(self, sizes, strides, offset);
  if (!dims) return std::nullopt;
  constexpr std::size_t kNone = std::numeric_limits<std::size_t>::max();
  std::vector<std::size_t> output_of(static_cast<std::size_t>(self.dim()), kNone);
  at::Tensor result = self;
  for (const SeenDim& dim : *dims) {
    std::size_t& output = output_of[static_cast<std::size_t>(dim.dim)];
    if (!dim.outputs.empty()) output = dim.outputs[0];
    if (dim.outputs.size() == 2) {
      const std::int64_t window = sizes[dim.outputs[1]];
      const std::int64_t step = strides[output] / dim.stride;
      const std::int64_t span = (sizes[output] - 1) * step + window;
      result = result.narrow(dim.dim, dim.begin, span).unfold(dim.dim, window, step);
      output_of.push_back(dim.outputs[1]);
    } else {
      const std::int64_t step = dim.outputs.empty() ? 1 : strides[output] / dim.stride;
      const std::int64_t length = dim.outputs.empty() ? 1 : sizes[output];
      if (length < dim.size) result = result.slice(dim.dim, dim.begin, dim.begin + (length - 1) * step + 1, step);
    }
  }
  for (std::size_t i = output_of.size(); i-- > 0;) {
    if (output_of[i] != kNone) continue;
    result = result.select(static_cast<std::int64_t>(i), 0);
    output_of.erase(output_of.begin() + static_cast<std::ptrdiff_t>(i));
  }
  std::vector<std::int64_t> order(output_of.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int64_t>(i);
  std::sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
    return output_of[static_cast<std::size_t>(a)] < output_of[static_cast<std::size_t>(b)];
  });
  result = result.permute(order);
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] == 1) result = result.unsqueeze(static_cast<std::int64_t>(i));
  }
  return result;
}

/// stft and sliding windows step through each sample: where strides do not leave a dim, they are views of dims.
at::Tensor as_strided(const at::Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                      std::optional<c10::SymInt> storage_offset) {
  const at::IntArrayRef sizes = C10_AS_INTARRAYREF_SLOW(size);
  const at::IntArrayRef strides = C10_AS_INTARRAYREF_SLOW(stride);
  const std::int64_t offset = storage_offset ? storage_offset->expect_int() : self.storage_offset();
  const bool changes_sizes = sizes != self.sizes();
  if (changes_sizes && sizes.size() == strides.size() && is_mesh_tensor(self)) {
    if (auto view = as_views_of_dims(self, sizes, strides, offset)) return *std::move(view);
  }
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("aten::as_strided", "");
  torch::jit::Stack stack{self, sizes, strides, offset};
  op.callBoxedForDispatchKey(c10::DispatchKey::Autograd, stack);
  return stack[0].toTensor();
}

}  // namespace

void add_as_strided_composite(torch::Library& autograd) { autograd.impl("as_strided", as_strided); }

void add_as_strided_rules(RuleTable& table) {
  table["aten::as_strided"] = {.rows = as_strided_rows, .localise = localise_as_strided, .cuts = Cuts::kSeen};
}

}  // namespace tessera::rules
