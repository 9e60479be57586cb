// SPDX-License-Identifier: Apache-2.0
// Finds NaN and infinity in parameters and gradients, and says where they are.
#pragma once

#include <torch/nn/module.h>

namespace tessera {

/// Checks every parameter and every gradient of `module`. The first that is not finite is named, with the rank that
/// holds it. A gradient that is still a partial sum (inside NoSync) is checked as it is, so that the rank whose samples
/// made it is named; once it is reduced, every rank holds the same NaN and the first one is named.
///
/// Cost      a pass over the local values, one all-reduce of one number per mesh
/// Order     collective for a module on a mesh
/// Throws    Error naming parameter, rank and what was found, the same on every rank
void check_finite(const torch::nn::Module& module);

}  // namespace tessera
