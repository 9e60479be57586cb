// SPDX-License-Identifier: Apache-2.0
// A module as a chain of parts.
#include "module/parts.h"

#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/container/sequential.h>

namespace tessera::module {
namespace {

bool is_chain(const torch::nn::Module& module) {
  return dynamic_cast<const torch::nn::SequentialImpl*>(&module) != nullptr ||
         dynamic_cast<const torch::nn::ModuleListImpl*>(&module) != nullptr;
}

void add_parts(const torch::nn::Module& module, const std::string& prefix, std::vector<ModulePart>& parts) {
  for (const auto& child : module.named_children()) {
    const std::string path = prefix + child.key();
    if (is_chain(*child.value())) {
      add_parts(*child.value(), path + ".", parts);
    } else if (!child.value()->parameters().empty() || !child.value()->buffers().empty()) {
      parts.push_back({path, child.value()});
    }
  }
}

}  // namespace

std::vector<ModulePart> parts_of(const torch::nn::Module& module) {
  std::vector<ModulePart> parts;
  add_parts(module, "", parts);
  return parts;
}

}  // namespace tessera::module
