// SPDX-License-Identifier: Apache-2.0
// Random numbers on mesh tensors: the same on every mesh and under every plan.
//
// Dropout, normal_, uniform_, bernoulli, rand_like and their kin on a mesh tensor do not draw from LibTorch's
// generators, whose numbers depend on how a tensor is cut. They draw from Philox4x32-10 (Salmon et al. 2011), keyed by
//
//   seed            of the mesh, set by manual_seed()
//   draw            how many random operators this mesh has run before
//   element         the index of the element in the GLOBAL tensor, row-major
//
// so that an element's number is known without drawing any other. A model therefore drops the same activations on one
// rank and on a thousand. Plain LibTorch draws other numbers: compare with a mesh of one rank, not with plain tensors.
//
// Not covered, and refused on more than one rank: binomial and the gamma family. An explicit
// torch::Generator is refused, and torch::rand() and others without a tensor argument stay plain: the same on all ranks if
// these are processes that called torch::manual_seed alike (tessera::step keeps it so in pipelines). Ranks that are threads
// share LibTorch's generator and draw different numbers from it.
#pragma once

#include <cstdint>

#include "tessera/mesh/mesh.h"

namespace tessera {

/// Where a mesh stands in its random numbers. Two integers: store them in a checkpoint, set them to go on or to draw
/// the same numbers again.
struct RandomState {
  std::uint64_t seed = 0;
  /// Random operators run since the seed was set.
  std::uint64_t num_draws = 0;
  friend bool operator==(const RandomState&, const RandomState&) = default;
};

/// Starts the mesh's random numbers anew. Default before the first call: seed 0.
/// Order   every rank sets the same seed at the same place of the program; nothing is sent
void manual_seed(const Mesh& mesh, std::uint64_t seed);

[[nodiscard]] RandomState random_state(const Mesh& mesh);

/// Order   every rank sets the same state at the same place of the program; nothing is sent
void set_random_state(const Mesh& mesh, const RandomState& state);

}  // namespace tessera
