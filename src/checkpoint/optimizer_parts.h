// SPDX-License-Identifier: Apache-2.0
// What optimizers keep, parameter by parameter.
#pragma once

#include <torch/optim/optimizer.h>

#include <string>

#include "checkpoint/collector.h"

namespace tessera::checkpoint {

/// Adds what `optimizer` keeps under `name`. Throws ConfigError for an optimizer that is none of LibTorch's or ours.
void collect_optimizer(const std::string& name, torch::optim::Optimizer& optimizer, Collector& collector);

}  // namespace tessera::checkpoint
