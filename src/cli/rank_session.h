// SPDX-License-Identifier: Apache-2.0
// One rank's session as its configuration says.
#pragma once

#include <memory>

#include "tessera/comm/world.h"
#include "tessera/train/session.h"

namespace tessera::cli {

/// Loads the data and builds the model, over a mesh if the configuration names one. Rank 0 logs one line about it.
/// Order   collective
/// Throws  ConfigError for several ranks without a mesh
[[nodiscard]] train::Session make_session(const train::TrainConfig& config, const std::shared_ptr<comm::World>& world,
                                          const train::SessionOptions& options = {});

}  // namespace tessera::cli
