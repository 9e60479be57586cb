// SPDX-License-Identifier: Apache-2.0
// Optimizers by options, for tests that make the same one for a module on one device and on a mesh.
#pragma once

#include <torch/optim.h>

#include <functional>
#include <memory>
#include <utility>
#include <vector>

namespace tessera::test {

using MakeOptimizer = std::function<std::unique_ptr<torch::optim::Optimizer>(std::vector<at::Tensor>)>;

template <class Optimizer, class Options>
MakeOptimizer maker(const Options& options) {
  return [options](std::vector<at::Tensor> parameters) {
    return std::make_unique<Optimizer>(std::move(parameters), options);
  };
}

}  // namespace tessera::test
