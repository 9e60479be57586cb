// SPDX-License-Identifier: Apache-2.0
// Matches the tensors of a file with the parameters of a module.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "checkpoint/dtypes.h"
#include "checkpoint/weights_file.h"
#include "tessera/base/error.h"
#include "tessera/checkpoint/safetensors.h"
#include "tessera/tensor/mesh_tensor.h"
#include "tessera/tensor/stages.h"

namespace tessera::checkpoint {
namespace {

// What keeps `tensor` from filling `parameter`; empty if nothing does.
std::string difference(const TensorEntry& entry, const at::Tensor& parameter, at::ScalarType stored) {
  if (parameter.sizes() != at::IntArrayRef(entry.shape)) {
    return fmt::format("{}: shape [{}] in the file, [{}] in the model", entry.name, fmt::join(entry.shape, ", "),
                       fmt::join(parameter.sizes(), ", "));
  }
  if (entry.dtype != stored) {
    return fmt::format("{}: {} in the file, {} in the model", entry.name, dtype_name(entry.dtype), dtype_name(stored));
  }
  return {};
}

// What this rank holds of a parameter: all of a plain one.
tensor::Box part_of(const at::Tensor& parameter) {
  if (!is_mesh_tensor(parameter)) return tensor::Box::whole_of(parameter.sizes());
  return tensor::Box::of(parameter.sizes(), placements(parameter), mesh_of(parameter));
}

void read_part(const WeightsFile& file, const TensorEntry& entry, const at::Tensor& parameter) {
  if (is_mesh_tensor(parameter) && !is_here(parameter)) return;
  at::Tensor mine = local(parameter).detach();
  if (entry.dtype == mine.scalar_type()) {
    file.read(entry, part_of(parameter), mine);
    return;
  }
  const at::Tensor stored = at::empty(mine.sizes(), mine.options().dtype(entry.dtype));
  file.read(entry, part_of(parameter), stored);
  mine.copy_(stored);
}

}  // namespace

std::vector<NamedTensor> named_parameters(const torch::nn::Module& module) {
  std::vector<NamedTensor> tensors;
  for (const auto& item : module.named_parameters()) tensors.push_back({item.key(), item.value()});
  return tensors;
}

void load_weights(torch::nn::Module& module, const std::filesystem::path& path,
                  std::optional<at::ScalarType> stored_dtype) {
  const WeightsFile file(path);
  std::map<std::string, const TensorEntry*> stored;
  for (const auto& entry : file.tensors()) stored.emplace(entry.name, &entry);
  const auto wanted = named_parameters(module);
  std::vector<std::string> problems;
  std::vector<std::pair<at::Tensor, const TensorEntry*>> reads;
  for (const auto& [name, parameter] : wanted) {
    const auto found = stored.find(name);
    if (found == stored.end()) {
      problems.push_back(fmt::format("{}: missing in the file", name));
      continue;
    }
    const at::ScalarType dtype = stored_dtype.value_or(parameter.scalar_type());
    if (auto problem = difference(*found->second, parameter, dtype); !problem.empty()) problems.push_back(problem);
    reads.emplace_back(parameter, found->second);
    stored.erase(found);
  }
  for (const auto& [name, entry] : stored) problems.push_back(fmt::format("{}: not in the model", printable(name)));
  constexpr std::size_t kMaxListed = 10;
  if (!problems.empty()) {
    const auto count = problems.size();
    problems.resize(std::min(count, kMaxListed));
    throw FileError(fmt::format("{}: {} of the weights do not fit the model; {}{}", path.string(), count,
                                fmt::join(problems, "; "), count > kMaxListed ? "; ..." : ""));
  }
  const at::NoGradGuard no_grad;
  for (const auto& [parameter, entry] : reads) read_part(file, *entry, parameter);
}

void save_weights(const std::vector<NamedTensor>& tensors, const std::filesystem::path& path) {
  write_safetensors(tensors, path, {{"format", "pt"}});
}

}  // namespace tessera::checkpoint
