// SPDX-License-Identifier: Apache-2.0
// Views as steps in their base.
#include "tensor/view_of_base.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/ones.h>

#include <algorithm>

#include "tessera/base/error.h"

namespace tessera::tensor {
namespace {

/// A tensor without data that lies so.
at::Tensor on_meta(const Strided& layout, at::ScalarType dtype) {
  const auto elements = static_cast<std::int64_t>(at::detail::computeStorageNbytes(
      layout.sizes, layout.strides, /*itemsize_bytes=*/1, static_cast<std::size_t>(layout.offset)));
  return at::empty({elements}, at::TensorOptions(at::kMeta).dtype(dtype))
      .as_strided(layout.sizes, layout.strides, layout.offset);
}

/// The first i with begin + step * i >= position.
std::int64_t first_at_or_after(std::int64_t position, std::int64_t begin, std::int64_t step) {
  return position <= begin ? 0 : (position - begin + step - 1) / step;
}

at::Tensor narrowed(at::Tensor tensor, const Box& from, const Box& to) {
  for (std::size_t dim = 0; dim < to.extents.size(); ++dim) {
    const std::int64_t first = to.extents[dim].offset - from.extents[dim].offset;
    check<Error>(first >= 0 && first + to.extents[dim].length <= from.extents[dim].length,
                 "a rank lacks part of what it should write into a view");
    tensor = tensor.narrow(static_cast<std::int64_t>(dim), first, to.extents[dim].length);
  }
  return tensor;
}

}  // namespace

Strided Strided::of(const at::Tensor& tensor) {
  return {Sizes(tensor.sizes().begin(), tensor.sizes().end()), Sizes(tensor.strides().begin(), tensor.strides().end()),
          tensor.storage_offset()};
}

std::vector<Strided> views_of(const c10::OperatorHandle& op, c10::ArrayRef<c10::IValue> arguments, const Strided& base,
                              at::ScalarType dtype) {
  torch::jit::Stack stack(arguments.begin(), arguments.end());
  const at::Tensor whole = on_meta(base, dtype);
  stack[0] = whole;
  try {
    op.callBoxed(stack);
  } catch (const c10::Error&) {
    return {};
  }
  std::vector<Strided> views;
  const auto add = [&](const at::Tensor& view) {
    const bool shows_memory = view.is_alias_of(whole) && !view.is_conj() && !view.is_neg() && view.scalar_type() == dtype;
    if (shows_memory) views.push_back(Strided::of(view));
  };
  if (stack[0].isTensor()) add(stack[0].toTensor());
  if (stack[0].isTensorList()) {
    for (const c10::IValue& item : stack[0].toListRef()) add(item.toTensor());
  }
  return views;
}

ViewOfBase::ViewOfBase(const Strided& base, const Strided& view) : base_(base), view_(view), follows_(base.sizes.size()) {
  for (std::size_t dim = 0; dim < base_.sizes.size(); ++dim) {
    if (base_.sizes[dim] > 1) outer_first_.push_back(dim);
  }
  std::stable_sort(outer_first_.begin(), outer_first_.end(),
                   [&](std::size_t a, std::size_t b) { return base_.strides[a] > base_.strides[b]; });
  stepped_ = find_steps();
}

/// A distance in memory as steps along the dims of the base.
std::optional<Sizes> ViewOfBase::positions_of(std::int64_t distance) const {
  Sizes positions(base_.sizes.size(), 0);
  for (const std::size_t dim : outer_first_) {
    if (base_.strides[dim] == 0) return std::nullopt;
    positions[dim] = distance / base_.strides[dim];
    distance %= base_.strides[dim];
  }
  return distance == 0 ? std::optional(positions) : std::nullopt;
}

bool ViewOfBase::find_steps() {
  const auto begin = positions_of(view_.offset - base_.offset);
  if (!begin) return false;
  for (std::size_t dim = 0; dim < follows_.size(); ++dim) follows_[dim].begin = (*begin)[dim];
  for (std::size_t of_view = 0; of_view < view_.sizes.size(); ++of_view) {
    if (view_.sizes[of_view] < 2) continue;
    const auto steps = positions_of(view_.strides[of_view]);
    if (!steps) return false;
    for (std::size_t dim = 0; dim < follows_.size(); ++dim) {
      if ((*steps)[dim] == 0) continue;
      if (follows_[dim].dim >= 0) return false;
      follows_[dim] = {static_cast<int>(of_view), (*begin)[dim], (*steps)[dim]};
    }
  }
  for (std::size_t dim = 0; dim < follows_.size(); ++dim) {
    const Follows& follows = follows_[dim];
    const std::int64_t count = follows.dim < 0 ? 1 : view_.sizes[static_cast<std::size_t>(follows.dim)];
    if (follows.begin + follows.step * (count - 1) >= std::max<std::int64_t>(base_.sizes[dim], 1)) return false;
  }
  return true;
}

bool ViewOfBase::cuts(std::size_t dim) const {
  const Follows& follows = follows_[dim];
  if (follows.dim < 0 || follows.step != 1) return true;
  const auto same_dim = [&](const Follows& other) { return other.dim == follows.dim; };
  return view_.sizes[static_cast<std::size_t>(follows.dim)] != base_.sizes[dim] ||
         std::count_if(follows_.begin(), follows_.end(), same_dim) > 1;
}

ViewOfBase::Part ViewOfBase::part(const at::Tensor& local, const Box& held) const {
  Part part{{}, Box::whole_of(view_.sizes)};
  bool any = true;
  for (std::size_t dim = 0; dim < follows_.size(); ++dim) {
    const auto& [of_view, begin, step] = follows_[dim];
    const std::int64_t first_held = held.extents[dim].offset;
    const std::int64_t end_held = first_held + held.extents[dim].length;
    if (of_view < 0) {
      any = any && first_held <= begin && begin < end_held;
      continue;
    }
    Extent& extent = part.box.extents[static_cast<std::size_t>(of_view)];
    const std::int64_t first = std::max(extent.offset, first_at_or_after(first_held, begin, step));
    const std::int64_t end = std::min(extent.offset + extent.length, first_at_or_after(end_held, begin, step));
    extent = {first, std::max<std::int64_t>(end - first, 0)};
  }
  if (!any || part.box.num_elements() == 0) return part;
  Sizes sizes;
  Sizes strides(view_.sizes.size(), 0);
  for (const Extent& extent : part.box.extents) sizes.push_back(extent.length);
  std::int64_t offset = local.storage_offset();
  for (std::size_t dim = 0; dim < follows_.size(); ++dim) {
    const auto& [of_view, begin, step] = follows_[dim];
    const std::int64_t stride = local.stride(static_cast<std::int64_t>(dim));
    std::int64_t position = begin - held.extents[dim].offset;
    if (of_view >= 0) {
      strides[static_cast<std::size_t>(of_view)] += step * stride;
      position += step * part.box.extents[static_cast<std::size_t>(of_view)].offset;
    }
    offset += position * stride;
  }
  part.elements = local.as_strided(sizes, strides, offset);
  return part;
}

/// Where each element of the box lies in the shard, one tensor of indices per dim of the base.
std::vector<at::Tensor> ViewOfBase::positions(const Box& held, const Box& of_view) const {
  at::Tensor distance = at::full({}, view_.offset - base_.offset, at::kLong);
  for (std::size_t dim = 0; dim < of_view.extents.size(); ++dim) {
    const Extent& extent = of_view.extents[dim];
    const at::Tensor along = at::arange(extent.offset, extent.offset + extent.length, at::kLong).mul(view_.strides[dim]);
    distance = distance.unsqueeze(-1).add(along);
  }
  std::vector<at::Tensor> positions(base_.sizes.size());
  for (std::size_t dim = 0; dim < positions.size(); ++dim) positions[dim] = at::full_like(distance, -held.extents[dim].offset);
  for (const std::size_t dim : outer_first_) {
    positions[dim].add_(distance.div(std::max<std::int64_t>(base_.strides[dim], 1), "floor"));
    distance = distance.remainder(std::max<std::int64_t>(base_.strides[dim], 1));
  }
  return positions;
}

at::Tensor ViewOfBase::read(const at::Tensor& local, const Box& held, const Box& wanted) const {
  if (stepped_) {
    const Part held_part = part(local, held);
    return held_part.elements.defined() ? narrowed(held_part.elements, held_part.box, wanted) : at::Tensor();
  }
  c10::List<std::optional<at::Tensor>> indices;
  for (const at::Tensor& positions : positions(held, wanted)) indices.push_back(positions.to(local.device()));
  return local.index(indices);
}

void ViewOfBase::write(const at::Tensor& local, const Box& held, const at::Tensor& values, const Box& given) const {
  if (stepped_) {
    const Part held_part = part(local, held);
    if (held_part.elements.defined()) held_part.elements.copy_(narrowed(values, given, held_part.box));
    return;
  }
  const std::vector<at::Tensor> all = positions(held, given);
  at::Tensor mine = at::ones(values.sizes(), at::kBool);
  for (std::size_t dim = 0; dim < all.size(); ++dim) {
    mine.logical_and_(all[dim].ge(0).logical_and(all[dim].lt(held.extents[dim].length)));
  }
  c10::List<std::optional<at::Tensor>> indices;
  for (const at::Tensor& positions : all) indices.push_back(positions.masked_select(mine).to(local.device()));
  at::Tensor target = local;
  target.index_put_(indices, values.masked_select(mine.to(values.device())));
}

}  // namespace tessera::tensor
