// SPDX-License-Identifier: Apache-2.0
// A module as a chain of parts: what pipeline stages are made of, and what recomputation drops together.
#pragma once

#include <torch/nn/module.h>

#include <memory>
#include <string>
#include <vector>

namespace tessera::module {

struct ModulePart {
  std::string path;
  std::shared_ptr<torch::nn::Module> module;
};

/// The children of `module` in the order in which they are registered, or their children where a child is a list or
/// sequence. Parts without parameters and buffers are left out.
[[nodiscard]] std::vector<ModulePart> parts_of(const torch::nn::Module& module);

}  // namespace tessera::module
