// SPDX-License-Identifier: Apache-2.0
// Slices across shards.
#include "module/cut_view.h"

#include <ATen/core/enum_tag.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>

#include "rules/random.h"
#include "tensor/mesh_storage.h"
#include "tensor/redistribute.h"
#include "tessera/base/error.h"
#include "tessera/tensor/mesh_tensor.h"

namespace tessera::module {
namespace {

using tensor::storage_of;

bool is_elementwise(const c10::OperatorHandle& op) {
  constexpr std::array kNames{"aten::fill_", "aten::zero_", "aten::copy_"};
  return op.hasTag(at::Tag::pointwise) || std::find(kNames.begin(), kNames.end(), op.schema().name()) != kNames.end();
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

CutView::CutView(at::Tensor base) : CutView(base, tensor::Strided::of(base)) {}

CutView::CutView(at::Tensor base, tensor::Strided shows)
    : base_(std::move(base)), shows_(std::move(shows)), view_(tensor::Strided::of(base_), shows_) {}

std::vector<CutView> CutView::views(const c10::OperatorHandle& op, const std::vector<c10::IValue>& arguments) const {
  std::vector<CutView> result;
  for (tensor::Strided& shows : tensor::views_of(op, arguments, shows_, base_.scalar_type())) {
    result.push_back(CutView(base_, std::move(shows)));
  }
  return result;
}

bool CutView::is_cut() const {
  if (!view_.is_stepped()) return false;
  for (const Placement& placement : storage_of(base_).placements()) {
    if (placement.is_shard() && view_.cuts(static_cast<std::size_t>(placement.dim))) return true;
  }
  return false;
}

at::Tensor CutView::read() const {
  const auto& storage = storage_of(base_);
  const Mesh& mesh = storage.mesh();
  Placements gathered = storage.placements();
  Placements made = gathered;
  for (int axis = 0; axis < gathered.size(); ++axis) {
    if (!gathered[axis].is_shard()) continue;
    const auto dim = static_cast<std::size_t>(gathered[axis].dim);
    const bool is_cut = !gathered[axis].cut.is_plain() || view_.cuts(dim);
    made[axis] = is_cut ? Placement(Replicate()) : Placement(Shard(view_.dim_of(dim)));
    if (is_cut) gathered[axis] = Replicate();
  }
  const auto held = tensor::Box::of(base_.sizes(), gathered, mesh);
  const auto wanted = tensor::Box::of(shows_.sizes, made, mesh);
  const at::Tensor local = tensor::read_as(base_, gathered);
  const at::Tensor part = view_.read(local, held, wanted);
  const at::Tensor own = part.defined() ? part.contiguous().clone()
                                        : at::empty(tensor::local_sizes(shows_.sizes, made, mesh), local.options());
  return tensor::wrap(own, made, mesh, shows_.sizes);
}

void CutView::write(const c10::OperatorHandle& op, std::vector<c10::IValue> arguments) const {
  auto& storage = storage_of(base_);
  const auto pieces =
      tensor::pieces_of(tensor::Box::of(base_.sizes(), storage.placements(), storage.mesh()), storage.local());
  // Collective, so once, however many pieces a rank holds.
  for (std::size_t i = 1; i < arguments.size(); ++i) {
    if (arguments[i].isTensor()) arguments[i] = full(arguments[i].toTensor());
  }
  for (const tensor::Piece& piece : pieces) write_piece(op, arguments, piece);
}

bool CutView::is_in_groups() const {
  const Placements& placements = storage_of(base_).placements();
  return std::any_of(placements.begin(), placements.end(), [](const Placement& p) { return p.is_shard() && p.cut.groups > 1; });
}

void CutView::write_piece(const c10::OperatorHandle& op, std::vector<c10::IValue> arguments,
                          const tensor::Piece& piece) const {
  const auto [local, box] = view_.part(piece.local, piece.box);
  const bool has_part = local.defined();
  for (std::size_t i = 1; i < arguments.size(); ++i) {
    if (arguments[i].isTensor() && has_part) arguments[i] = part_of(arguments[i].toTensor(), box);
  }
  if (rules::draws_by_element(op)) {
    check<ConfigError>(!is_in_groups(),
                       "build: {} draws into a slice along a dim that the plan cuts in groups; draw the whole parameter, or "
                       "leave that dim whole in the plan",
                       op.schema().name());
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
