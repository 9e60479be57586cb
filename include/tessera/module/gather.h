// SPDX-License-Identifier: Apache-2.0
// The inverse of distribute().
#pragma once

#include <torch/nn/module.h>

namespace tessera {

/// Turns the module's mesh parameters, buffers and gradients into plain tensors with the full values, in place and on
/// every rank. torch::save writes memory as it is and so refuses mesh tensors; a copy of a module can be saved:
///
///   auto copy = model->clone();
///   gather(*copy);
///   if (rank == 0) torch::save(..., "model.pt");
///
/// torch::load reads such a file into a distributed module as well as into a plain one.
///
/// Memory    the whole module on every rank
/// Order     collective
void gather(torch::nn::Module& module);

}  // namespace tessera
