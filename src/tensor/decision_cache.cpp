// SPDX-License-Identifier: Apache-2.0
// Decisions remembered per mesh and rank.
#include "tensor/decision_cache.h"

#include <utility>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace tessera::tensor {
namespace {

/// Programs whose sizes never repeat must not grow without bound; a cleared cache is only slow.
constexpr std::size_t kMaxDecisions = 1 << 16;

/// Words for arguments that have no number: they only need to differ from each other.
constexpr std::int64_t kNone = -0x7e57;
constexpr std::int64_t kUnread = -0x7e58;

}  // namespace

void CallKey::add(const Placements& placements) {
  for (const Placement& placement : placements) {
    const bool has_stages = placement.stages != 0;
    const bool has_cut = !placement.cut.is_plain();
    words_.push_back(static_cast<std::int64_t>(has_cut) << 41 | static_cast<std::int64_t>(has_stages) << 40 | static_cast<std::int64_t>(placement.kind) << 32 |
                     static_cast<std::int64_t>(placement.op) << 16 | placement.dim);
    if (has_stages) words_.push_back(static_cast<std::int64_t>(placement.stages));
    if (has_cut) words_.push_back(static_cast<std::int64_t>(placement.cut.groups) << 32 | placement.cut.unit);
  }
}

void CallKey::add_argument(const c10::IValue& value) {
  // Floating point numbers, scalars, devices and generators never decide a placement.
  if (value.isInt()) {
    add(value.toInt());
  } else if (value.isBool()) {
    add(value.toBool() ? 1 : 0);
  } else if (value.isIntList()) {
    const auto list = value.toDimVector();
    add(at::IntArrayRef(list));
  } else if (value.isBoolList()) {
    const auto list = value.toBoolList();
    add(static_cast<std::int64_t>(list.size()));
    for (const bool item : list) add(item ? 1 : 0);
  } else if (value.isString()) {
    add(static_cast<std::int64_t>(XXH3_64bits(value.toStringRef().data(), value.toStringRef().size())));
  } else {
    add(value.isNone() ? kNone : kUnread);
  }
}

std::uint64_t CallKey::hash() const noexcept { return XXH3_64bits(words_.data(), words_.size() * sizeof(std::int64_t)); }

MeshRuntime& MeshRuntime::of(const Mesh& mesh) {
  std::shared_ptr<void>& slot = mesh.attachment();
  if (slot == nullptr) [[unlikely]]
    slot = std::make_shared<MeshRuntime>(mesh);
  return *static_cast<MeshRuntime*>(slot.get());
}

Microbatch* MeshRuntime::enter(Microbatch* microbatch) noexcept {
  Microbatch* before = stages.enter(microbatch);
  (before == nullptr ? random_outside_ : before->random) = random;
  random = microbatch == nullptr ? random_outside_ : microbatch->random;
  return before;
}

Decision* MeshRuntime::find(std::span<const std::int64_t> key) {
  const auto found = decisions_.find(key);
  return found == decisions_.end() ? nullptr : &found->second;
}

Decision& MeshRuntime::remember(std::span<const std::int64_t> key, Decision decision) {
  // Calls under way hold references: what they use lives on for as many decisions again.
  if (decisions_.size() >= kMaxDecisions) retired_ = std::exchange(decisions_, {});
  return decisions_.insert_or_assign(std::vector<std::int64_t>(key.begin(), key.end()), std::move(decision))
      .first->second;
}

std::size_t MeshRuntime::Hash::operator()(std::span<const std::int64_t> words) const noexcept {
  return XXH3_64bits(words.data(), words.size_bytes());
}

}  // namespace tessera::tensor
