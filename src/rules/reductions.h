// SPDX-License-Identifier: Apache-2.0
// What families of reductions share.
#pragma once

#include "rules/rows.h"

namespace tessera::rules {

/// Local norms of order `ord` or `p` become those of the whole. decision.notes: the axes that cut what is reduced.
void compute_norm(const c10::OperatorHandle& op, const Decision& decision, const Mesh& mesh, torch::jit::Stack& stack);

}  // namespace tessera::rules
