// SPDX-License-Identifier: Apache-2.0
// The state of a mesh's random numbers.
#include "tessera/tensor/random.h"

#include "tensor/decision_cache.h"

namespace tessera {

void manual_seed(const Mesh& mesh, std::uint64_t seed) { set_random_state(mesh, {.seed = seed, .num_draws = 0}); }

RandomState random_state(const Mesh& mesh) { return tensor::MeshRuntime::of(mesh).random; }

void set_random_state(const Mesh& mesh, const RandomState& state) { tensor::MeshRuntime::of(mesh).random = state; }

}  // namespace tessera
