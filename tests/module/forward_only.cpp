// SPDX-License-Identifier: Apache-2.0
// A program of two processes whose first ends right after it has sent a large activation: it must arrive whole.
#include <torch/torch.h>

#include <iostream>

#include "tessera/tessera.h"

namespace {

/// Sends an activation of 32 MiB from stage 0 to stage 1: more than a transport keeps on the way.
at::Tensor cross(const tessera::Mesh& mesh) {
  constexpr std::int64_t kElements = 1 << 23;
  const at::Tensor first = tessera::distribute(torch::ones({kElements}), mesh, {tessera::Stage(0)});
  const at::Tensor second = tessera::distribute(torch::ones({kElements}), mesh, {tessera::Stage(1)});
  return first + second;
}

}  // namespace

int main(int argc, char** argv) {
  const tessera::Ranks ranks = tessera::launch(argc, argv, {.threads_per_rank = 1});
  const tessera::Mesh mesh(ranks, {{"pp", -1}});
  (void)cross(mesh);  // the first rank waits for the shape of the sum once, and never again
  const at::Tensor sum = cross(mesh);
  if (mesh.rank() == 0) return 0;
  const bool whole = tessera::local(sum).eq(2).all().item<bool>();
  if (!whole) std::cerr << "forward_only: the activation did not arrive whole" << std::endl;
  return whole ? 0 : 1;
}
