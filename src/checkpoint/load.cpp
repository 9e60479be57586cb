// SPDX-License-Identifier: Apache-2.0
// Reading a checkpoint: prove everything, then write.
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>

#include "checkpoint/agreement.h"
#include "checkpoint/collector.h"
#include "checkpoint/dtypes.h"
#include "checkpoint/held.h"
#include "checkpoint/manifest.h"
#include "checkpoint/matching.h"
#include "checkpoint/reader.h"
#include "tensor/decision_cache.h"
#include "tensor/gather_ahead.h"
#include "tensor/mesh_storage.h"
#include "tessera/checkpoint/checkpoint.h"
#include "tessera/tensor/mesh_tensor.h"

namespace tessera {
namespace checkpoint {
namespace {

/// What two boxes have in common, as a box of the whole; empty lengths are negative or zero.
struct Common {
  std::vector<std::int64_t> offset;
  std::vector<std::int64_t> length;
  bool empty = false;
};

Common common_of(const Block& block, const HeldBox& held) {
  Common common;
  for (std::size_t dim = 0; dim < block.offset.size(); ++dim) {
    const std::int64_t begin = std::max(block.offset[dim], held.offset[dim]);
    const std::int64_t end = std::min(block.offset[dim] + block.length[dim], held.offset[dim] + held.length[dim]);
    common.offset.push_back(begin);
    common.length.push_back(end - begin);
    common.empty = common.empty || end <= begin;
  }
  return common;
}

std::vector<std::int64_t> difference(std::vector<std::int64_t> a, const std::vector<std::int64_t>& b) {
  for (std::size_t dim = 0; dim < a.size(); ++dim) a[dim] -= b[dim];
  return a;
}

/// One tensor of the program and where its elements come from.
struct Target {
  at::Tensor tensor;
  std::vector<HeldBox> boxes;
  std::vector<Block> blocks;  ///< those that have some of them
};

Target target_of(const TensorMatch& match) {
  Target target{match.tensor, held_boxes(match.tensor), {}};
  for (Block& block : blocks_of(*match.saved)) {
    const auto meets = [&](const HeldBox& box) { return !common_of(block, box).empty; };
    if (std::any_of(target.boxes.begin(), target.boxes.end(), meets)) target.blocks.push_back(std::move(block));
  }
  return target;
}

/// Others may have kept what the tensor was: copies on pipeline stages, whole values of shards, autograd.
void tell_written(const at::Tensor& tensor) {
  tensor.unsafeGetTensorImpl()->bump_version();
  if (!is_mesh_tensor(tensor)) return;
  tensor::MeshRuntime::of(mesh_of(tensor)).stages.forget_copies(tensor);
  tensor::forget_gathered(tensor);
  tensor::storage_of(tensor).note_write();
}

void write(const Target& target, Reader& reader) {
  const at::Tensor memory = local(target.tensor).detach();
  for (const Block& block : target.blocks) {
    const at::Tensor& values = reader.read(block);
    for (const HeldBox& box : target.boxes) {
      const Common common = common_of(block, box);
      if (common.empty) continue;
      std::vector<std::int64_t> place = difference(common.offset, box.offset);
      for (std::size_t dim = 0; dim < place.size(); ++dim) place[dim] += box.local_offset[dim];
      part(memory, place, common.length).copy_(part(values, difference(common.offset, block.offset), common.length));
    }
  }
  tell_written(target.tensor);
}

std::optional<Mesh> mesh_in(const State& state) {
  Collector collector(nullptr);
  for (const Part& part : state.parts()) part(collector);
  return collector.mesh();
}

}  // namespace
}  // namespace checkpoint

void load(const std::filesystem::path& folder, State& state, const LoadOptions& options) {
  using namespace checkpoint;
  const at::NoGradGuard no_grad;
  const Group group(mesh_in(state));
  Manifest manifest;
  group.together([&] { manifest = read_manifest(folder); });
  const std::vector<std::string> digests = group.exchange(manifest.digest);
  Collector collector(&manifest);
  std::vector<Target> targets;
  Matches matches;
  std::optional<Reader> reader;
  group.together([&] {
    for (std::size_t rank = 0; rank < digests.size(); ++rank) {
      check<FileError>(digests[rank] == digests[0],
                       "{}: rank {} sees another checkpoint than rank 0; name a folder that all ranks share",
                       folder.string(), rank);
    }
    for (const Part& part : state.parts()) part(collector);
    matches = match(collector, options.only, folder.string());
    reader.emplace(folder, manifest);
    for (const TensorMatch& match : matches.tensors) {
      for (const Block& block : targets.emplace_back(target_of(match)).blocks) (void)reader->read(block);
    }
  });
  group.together([&] {
    for (const Target& target : targets) write(target, *reader);
  });
  for (const ValueMatch& match : matches.values) {
    if (match.item->set) match.item->set(*match.saved);
  }
  for (const auto& [name, action] : collector.finals()) {
    if (is_chosen(name, options.only)) action();
  }
}

}  // namespace tessera
