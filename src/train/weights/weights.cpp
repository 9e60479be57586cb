// SPDX-License-Identifier: Apache-2.0
// Matches the tensors of a file with the parameters of a module.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "tessera/base/error.h"
#include "tessera/train/safetensors.h"
#include "train/weights/dtypes.h"

namespace tessera::train {
namespace {

// What keeps `tensor` from filling `parameter`; empty if nothing does.
std::string difference(const std::string& name, const torch::Tensor& tensor, const torch::Tensor& parameter) {
  if (tensor.sizes() != parameter.sizes()) {
    return fmt::format("{}: shape [{}] in the file, [{}] in the model", name, fmt::join(tensor.sizes(), ", "),
                       fmt::join(parameter.sizes(), ", "));
  }
  if (tensor.scalar_type() != parameter.scalar_type()) {
    return fmt::format("{}: {} in the file, {} in the model", name, dtype_name(tensor.scalar_type()),
                       dtype_name(parameter.scalar_type()));
  }
  return {};
}

}  // namespace

std::vector<NamedTensor> named_parameters(const torch::nn::Module& module) {
  std::vector<NamedTensor> tensors;
  for (const auto& item : module.named_parameters()) tensors.push_back({item.key(), item.value()});
  return tensors;
}

void load_weights(torch::nn::Module& module, const std::filesystem::path& path) {
  std::map<std::string, torch::Tensor> stored;
  for (auto& [name, tensor] : read_safetensors(path)) stored.emplace(name, std::move(tensor));
  const auto wanted = named_parameters(module);
  std::vector<std::string> problems;
  std::vector<std::pair<torch::Tensor, torch::Tensor>> copies;
  for (const auto& [name, parameter] : wanted) {
    const auto found = stored.find(name);
    if (found == stored.end()) {
      problems.push_back(fmt::format("{}: missing in the file", name));
      continue;
    }
    if (auto problem = difference(name, found->second, parameter); !problem.empty()) problems.push_back(problem);
    copies.emplace_back(parameter, found->second);
    stored.erase(found);
  }
  for (const auto& [name, tensor] : stored) problems.push_back(fmt::format("{}: not in the model", printable(name)));
  constexpr std::size_t kMaxListed = 10;
  if (!problems.empty()) {
    const auto count = problems.size();
    problems.resize(std::min(count, kMaxListed));
    throw FileError(fmt::format("{}: {} of the weights do not fit the model; {}{}", path.string(), count,
                                fmt::join(problems, "; "), count > kMaxListed ? "; ..." : ""));
  }
  const torch::NoGradGuard no_grad;
  for (auto& [parameter, tensor] : copies) parameter.copy_(tensor);
}

void save_weights(const std::vector<NamedTensor>& tensors, const std::filesystem::path& path) {
  write_safetensors(tensors, path, {{"format", "pt"}});
}

}  // namespace tessera::train
