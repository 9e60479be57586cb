// SPDX-License-Identifier: Apache-2.0
// Whole tensors of checkpoints, proven, compared and exported.
#include "tessera/checkpoint/tools.h"

#include <ATen/ops/empty.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstring>
#include <set>

#include "checkpoint/dtypes.h"
#include "checkpoint/held.h"
#include "checkpoint/manifest.h"
#include "checkpoint/reader.h"
#include "tessera/base/text.h"
#include "tessera/checkpoint/safetensors.h"

namespace tessera::checkpoint {
namespace {

at::Tensor read_whole(const SavedTensor& saved, Reader& reader) {
  at::Tensor whole = at::empty(saved.shape, at::TensorOptions(saved.dtype));
  for (const Block& block : blocks_of(saved)) part(whole, block.offset, block.length).copy_(reader.read(block));
  return whole;
}

std::string described(const SavedTensor& tensor) {
  return fmt::format("{} [{}]", dtype_name(tensor.dtype), fmt::join(tensor.shape, ", "));
}

/// Elements whose bits differ, and by how much.
Difference compare_values(const std::string& name, const at::Tensor& a, const at::Tensor& b) {
  Difference difference{.name = name};
  if (std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0) return difference;
  const auto* left = static_cast<const char*>(a.const_data_ptr());
  const auto* right = static_cast<const char*>(b.const_data_ptr());
  const std::size_t size = a.element_size();
  for (std::size_t at = 0; at < a.nbytes(); at += size) {
    if (std::memcmp(left + at, right + at, size) != 0) ++difference.count;
  }
  difference.largest = (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
  difference.what = fmt::format("{} of {} elements", difference.count, a.numel());
  return difference;
}

void compare_values(const Manifest& a, const Manifest& b, std::vector<Difference>& differences) {
  for (const auto& [name, value] : a.values) {
    const auto other = b.values.find(name);
    if (other == b.values.end()) {
      differences.push_back({.name = name, .what = "only in the first"});
    } else if (!(other->second == value)) {
      differences.push_back({.name = name,
                             .what = fmt::format("\"{}\" against \"{}\"", printable(to_string(value)),
                                                 printable(to_string(other->second)))});
    }
  }
  for (const auto& [name, value] : b.values) {
    if (!a.values.contains(name)) differences.push_back({.name = name, .what = "only in the second"});
  }
}

/// `name` without the part it lies in; nothing if it lies in another.
std::optional<std::string> within(const std::string& name, const std::string& part) {
  if (part.empty()) return name;
  return name.starts_with(part + ".") ? std::optional(name.substr(part.size() + 1)) : std::nullopt;
}

/// The parts of names that stand before the first dot.
std::vector<std::string> parts_of(const Manifest& manifest) {
  std::set<std::string> parts;
  for (const SavedTensor& tensor : manifest.tensors) parts.insert(tensor.name.substr(0, tensor.name.find('.')));
  return {parts.begin(), parts.end()};
}

}  // namespace

std::vector<TensorDigest> tensor_digests(const std::filesystem::path& folder, const Manifest& manifest) {
  Reader reader(folder, manifest);
  std::vector<TensorDigest> digests;
  for (const SavedTensor& tensor : manifest.tensors) {
    const at::Tensor whole = read_whole(tensor, reader);
    digests.push_back({tensor.name, digest_of(whole.const_data_ptr(), whole.nbytes())});
  }
  return digests;
}

Verdict verify_checkpoint(const std::filesystem::path& folder) {
  Verdict verdict;
  const auto attempt = [&](const auto& work) {
    try {
      work();
    } catch (const CheckpointCorrupt& error) {
      const bool is_new = verdict.problems.empty() || verdict.problems.back() != error.what();
      if (is_new) verdict.problems.emplace_back(error.what());
    }
  };
  attempt([&] {
    const Manifest manifest = read_manifest(folder);
    Reader reader(folder, manifest);
    verdict.num_files = static_cast<std::int64_t>(manifest.files.size());
    attempt([&] { reader.open_all(); });
    for (const SavedTensor& tensor : manifest.tensors) {
      for (const Block& block : blocks_of(tensor)) {
        attempt([&] { verdict.num_bytes += static_cast<std::int64_t>(reader.read(block).nbytes()); });
        ++verdict.num_blocks;
      }
    }
  });
  return verdict;
}

std::vector<Difference> compare(const std::filesystem::path& a, const std::filesystem::path& b) {
  const Manifest first = read_manifest(a);
  const Manifest second = read_manifest(b);
  Reader first_reader(a, first);
  Reader second_reader(b, second);
  std::vector<Difference> differences;
  for (const SavedTensor& tensor : first.tensors) {
    const SavedTensor* other = second.find(tensor.name);
    if (other == nullptr) {
      differences.push_back({.name = tensor.name, .what = "only in the first"});
    } else if (tensor.shape != other->shape || tensor.dtype != other->dtype) {
      differences.push_back({.name = tensor.name, .what = described(tensor) + " against " + described(*other)});
    } else if (Difference found = compare_values(tensor.name, read_whole(tensor, first_reader), read_whole(*other, second_reader));
               found.count > 0) {
      differences.push_back(std::move(found));
    }
  }
  for (const SavedTensor& tensor : second.tensors) {
    if (first.find(tensor.name) == nullptr) differences.push_back({.name = tensor.name, .what = "only in the second"});
  }
  compare_values(first, second, differences);
  return differences;
}

std::int64_t export_safetensors(const std::filesystem::path& folder, const std::string& part,
                                const std::filesystem::path& to) {
  const Manifest manifest = read_manifest(folder);
  Reader reader(folder, manifest);
  std::vector<NamedTensor> tensors;
  const auto add = [&](const std::string& name, const SavedTensor& saved) {
    if (const auto inner = within(name, part)) tensors.push_back({*inner, read_whole(saved, reader)});
  };
  for (const SavedTensor& tensor : manifest.tensors) add(tensor.name, tensor);
  for (const auto& [name, target] : manifest.aliases) add(name, *manifest.find(target));
  check<ConfigError>(!tensors.empty(), "{}: has no tensors in part \"{}\"; parts: {}", folder.string(), printable(part),
                     fmt::join(parts_of(manifest), ", "));
  write_safetensors(tensors, to, {{"format", "pt"}});
  return static_cast<std::int64_t>(tensors.size());
}

}  // namespace tessera::checkpoint
