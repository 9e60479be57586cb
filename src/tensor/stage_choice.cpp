// SPDX-License-Identifier: Apache-2.0
// Where a call runs: with a parameter, else where its operands are.
#include "tensor/stage_choice.h"

#include <algorithm>

namespace tessera::tensor {
namespace {

/// What the operands of a call have in common.
struct Operands {
  StageSet pinned;      ///< where all parameters lie; `all` without one
  StageSet free;        ///< where all others lie
  StageSet latest = 0;  ///< the latest, over tensors, of the first stage that has it
  StageSet earliest = ~StageSet{0};
  bool any_pinned = false;
  bool any_free = false;
  bool any_copy = false;  ///< some of `free` were sent copies
  StageSet any_parameter = 0;
};

Operands look_at(const OpCall& call) {
  const StageMap& map = *call.stages;
  Operands seen{.pinned = map.all(), .free = map.all()};
  for (const TensorArg& tensor : call.tensors) {
    if (!tensor.defined) continue;
    const StageSet lies = map.set_of(tensor.placements);
    if (tensor.stage.pinned != 0) {
      seen.any_pinned = true;
      seen.pinned &= tensor.stage.pinned;
      seen.any_parameter |= tensor.stage.pinned;
    } else {
      seen.any_free = true;
      seen.free &= lies;
      seen.any_copy = seen.any_copy || tensor.stage.home != 0;
    }
    const StageSet first = lowest(tensor.stage.pinned != 0 ? tensor.stage.pinned : lies);
    seen.latest = std::max(seen.latest, first);
    seen.earliest = std::min(seen.earliest, first);
  }
  return seen;
}

/// Parameters decide. One that several stages have is used where the other operands are.
StageSet choose_by_parameters(const Operands& seen, StageSet all) {
  // Parameters of different stages in one call: the latest has to wait for the others anyway.
  if (seen.pinned == 0) return highest(seen.any_parameter);
  const StageSet both = seen.pinned & seen.free;
  // Operands that lie everywhere do not choose, and one stage is enough to compute with them.
  if (seen.any_free && seen.free == all) return lowest(seen.pinned);
  if (both != 0) return both;
  // The first of its stages that comes after the operands.
  const StageSet after = seen.pinned & ~(seen.latest - 1);
  return after != 0 ? lowest(after) : highest(seen.pinned);
}

/// Where forward ran. What ran on several stages (a view of a tied parameter) has its gradients on one of them.
StageSet choose_for_gradient(const Operands& seen, StageSet forward) {
  const StageSet there = forward & seen.free & seen.pinned;
  return there != 0 ? there : lowest(forward);
}

StageSet choose(const OpCall& call) {
  const Operands seen = look_at(call);
  if (call.written != 0) return call.written;
  if (call.forward_stages != 0) return choose_for_gradient(seen, call.forward_stages);
  if (seen.any_pinned) return choose_by_parameters(seen, call.stages->all());
  if (seen.free != 0 && !seen.any_copy) return seen.free;
  // A copy was sent on because what follows is there; in backward it goes home.
  if (seen.free != 0) return call.in_backward ? lowest(seen.free) : highest(seen.free);
  return call.in_backward ? seen.earliest : seen.latest;
}

}  // namespace

void choose_stages(const OpCall& call, Decision& decision) {
  const StageMap& map = *call.stages;
  decision.stages = choose(call);
  for (std::size_t i = 0; i < call.tensors.size(); ++i) {
    const TensorArg& tensor = call.tensors[i];
    // What is a plain tensor is on every rank already.
    if (!tensor.defined || !tensor.on_mesh) continue;
    decision.inputs[i][map.axis()] = map.placement_of(map.set_of(tensor.placements) | decision.stages);
  }
  const Placement there = map.placement_of(decision.stages);
  for (Placements& output : decision.outputs) output[map.axis()] = there;
  for (Decision& element : decision.elements) {
    for (Placements& output : element.outputs) output[map.axis()] = there;
  }
}

}  // namespace tessera::tensor
