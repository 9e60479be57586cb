// SPDX-License-Identifier: Apache-2.0
// Slices across shards.
#include "module/cut_view.h"

#include <ATen/core/enum_tag.h>

#include <algorithm>
#include <array>
#include <limits>

#include "rules/random.h"
#include "tensor/mesh_storage.h"
#include "tensor/operator_info.h"
#include "tessera/base/error.h"
#include "tessera/tensor/mesh_tensor.h"

namespace tessera::module {
namespace {

using tensor::storage_of;

std::int64_t argument(const std::vector<c10::IValue>& arguments, std::size_t index, std::int64_t otherwise) {
  return arguments[index].isInt() ? arguments[index].toInt() : otherwise;
}

/// Negative positions count from the end; what is outside is moved to the edge.
std::int64_t position(std::int64_t index, std::int64_t size) {
  return std::clamp<std::int64_t>(index < 0 ? index + size : index, 0, size);
}

bool is_elementwise(const c10::OperatorHandle& op) {
  constexpr std::array kNames{"aten::fill_", "aten::zero_", "aten::copy_"};
  return op.hasTag(at::Tag::pointwise) || std::find(kNames.begin(), kNames.end(), op.schema().name()) != kNames.end();
}

Extent intersection(const Extent& a, const Extent& b) {
  const std::int64_t begin = std::max(a.offset, b.offset);
  return {begin, std::max<std::int64_t>(0, std::min(a.offset + a.length, b.offset + b.length) - begin)};
}

/// The part `box` of a whole argument, broadcast to the view's sizes.
at::Tensor part_of(const at::Tensor& whole, const tensor::Box& box) {
  if (!whole.defined() || whole.dim() == 0) return whole;
  at::Tensor result = whole.expand(box.whole);
  for (std::size_t dim = 0; dim < box.extents.size(); ++dim) {
    result = result.narrow(static_cast<std::int64_t>(dim), box.extents[dim].offset, box.extents[dim].length);
  }
  return result;
}

}  // namespace

CutView::CutView(at::Tensor base) : base_(std::move(base)) {
  for (const std::int64_t size : base_.sizes()) dims_.push_back({{0, size}, false});
}

std::size_t CutView::base_dim(std::int64_t dim) const {
  const auto num_dims = std::count_if(dims_.begin(), dims_.end(), [](const Dim& d) { return !d.selected; });
  std::int64_t left = dim < 0 ? dim + num_dims : dim;
  for (std::size_t i = 0; i < dims_.size(); ++i) {
    if (!dims_[i].selected && left-- == 0) return i;
  }
  throw ShapeError(fmt::format("build: dim {} of a view of {} dims", dim, num_dims));
}

std::optional<CutView> CutView::view(const c10::FunctionSchema& schema,
                                     const std::vector<c10::IValue>& arguments) const {
  const std::string& name = schema.name();
  const bool is_slice = name == "aten::slice";
  const bool is_narrow = name == "aten::narrow" && arguments[2].isInt();
  const bool is_select = name == "aten::select";
  if (!(is_slice || is_narrow || is_select) || !arguments[1].isInt()) return std::nullopt;
  if (is_slice && argument(arguments, 4, 1) != 1) return std::nullopt;
  const std::int64_t size = dims_[base_dim(arguments[1].toInt())].extent.length;
  const std::int64_t begin = position(argument(arguments, 2, 0), size);
  std::int64_t end = begin + 1;
  if (is_slice) end = position(argument(arguments, 3, std::numeric_limits<std::int64_t>::max()), size);
  if (is_narrow) end = begin + arguments[3].toInt();
  return narrowed(arguments[1].toInt(), begin, std::max<std::int64_t>(end - begin, 0), is_select);
}

CutView CutView::narrowed(std::int64_t dim, std::int64_t begin, std::int64_t length, bool selected) const {
  CutView result = *this;
  Dim& narrow = result.dims_[base_dim(dim)];
  narrow = {{narrow.extent.offset + begin, length}, selected};
  return result;
}

bool CutView::is_cut() const {
  const auto& storage = storage_of(base_);
  for (std::size_t i = 0; i < dims_.size(); ++i) {
    const auto dim = static_cast<std::int64_t>(i);
    if (dims_[i].extent.length == base_.size(dim) && !dims_[i].selected) continue;
    for (const Placement& placement : storage.placements()) {
      if (placement.is_shard(dim)) return true;
    }
  }
  return false;
}

at::Tensor CutView::read() const {
  at::Tensor result = base_;
  for (std::size_t i = dims_.size(); i-- > 0;) {
    const auto dim = static_cast<std::int64_t>(i);
    result = result.narrow(dim, dims_[i].extent.offset, dims_[i].extent.length);
    if (dims_[i].selected) result = result.select(dim, 0);
  }
  storage_of(result).is_view_of_copy = true;
  return result;
}

Extent CutView::mine(std::size_t dim) const {
  const auto& storage = storage_of(base_);
  const std::int64_t size = base_.size(static_cast<std::int64_t>(dim));
  const Extent shard = tensor::local_extent(size, static_cast<int>(dim), storage.placements(), storage.mesh());
  return intersection(shard, dims_[dim].extent);
}

tensor::Box CutView::part() const {
  tensor::Box box;
  for (std::size_t dim = 0; dim < dims_.size(); ++dim) {
    if (dims_[dim].selected) continue;
    const Extent extent = mine(dim);
    box.whole.push_back(dims_[dim].extent.length);
    box.extents.push_back({extent.length == 0 ? 0 : extent.offset - dims_[dim].extent.offset, extent.length});
  }
  return box;
}

at::Tensor CutView::local_part() const {
  const auto& storage = storage_of(base_);
  at::Tensor result = storage_of(base_).local();
  for (std::size_t i = dims_.size(); i-- > 0;) {
    const auto dim = static_cast<std::int64_t>(i);
    const Extent shard =
        tensor::local_extent(base_.size(dim), static_cast<int>(i), storage.placements(), storage.mesh());
    const Extent extent = mine(i);
    result = result.narrow(dim, extent.length == 0 ? 0 : extent.offset - shard.offset, extent.length);
    // A rank without the selected index keeps a dim of length 0: it has nothing to write.
    if (dims_[i].selected && extent.length == 1) result = result.select(dim, 0);
  }
  return result;
}

void CutView::write(const c10::OperatorHandle& op, std::vector<c10::IValue> arguments) const {
  const at::Tensor local = local_part();
  const tensor::Box box = part();
  const bool has_part = local.dim() == static_cast<std::int64_t>(box.whole.size());
  for (std::size_t i = 1; i < arguments.size(); ++i) {
    if (!arguments[i].isTensor()) continue;
    const at::Tensor whole = full(arguments[i].toTensor());
    if (has_part) arguments[i] = part_of(whole, box);
  }
  if (rules::draws_by_element(op)) {
    // Ranks without a part draw nothing, but count.
    rules::draw_part(op, arguments, has_part ? local : at::Tensor(), box, mesh_of(base_));
    return;
  }
  check<ConfigError>(
      is_elementwise(op),
      "build: {} writes into a slice along a dim that the plan shards; allowed: elementwise operators, copy_ "
      "and random ones; or leave that dim whole in the plan",
      op.schema().name());
  if (!has_part) return;
  arguments[0] = local;
  torch::jit::Stack stack(arguments.begin(), arguments.end());
  op.callBoxed(stack);
}

}  // namespace tessera::module
