// SPDX-License-Identifier: Apache-2.0
// From rows to a decision: the cheapest legal row on every axis.
#pragma once

#include "tensor/rule.h"

namespace tessera::tensor {

/// Chooses placements for every input and output of `call`. `rule` null means gather and replicate.
/// Throws ShapeError in a strict mesh when `rule` is null.
[[nodiscard]] Decision decide(const OpCall& call, const Rule* rule);

/// Fills `decision.output_sizes` from the sizes that the local operator returned. Throws Error if a local output does
/// not have the size that its placement says, which would be a wrong rule.
void fill_output_sizes(const OpCall& call, const Rule* rule, Decision& decision,
                       c10::ArrayRef<c10::IValue> local_outputs);

}  // namespace tessera::tensor
