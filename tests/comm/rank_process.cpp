// SPDX-License-Identifier: Apache-2.0
// One rank of the real-process tests: rank_process TRANSPORT STORE_FILE RANK SIZE SCENARIO. Exit code 0: as expected.
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <unistd.h>

#include <torch/csrc/distributed/c10d/FileStore.hpp>

#include <cstdio>
#include <numeric>
#include <string>

#include "tessera/base/error.h"
#include "tessera/comm/worlds.h"

namespace {

using tessera::comm::Communicator;
using tessera::comm::Pending;
using tessera::comm::World;

bool collectives_agree(World& world) {
  std::vector<int> everyone(static_cast<std::size_t>(world.size()));
  std::iota(everyone.begin(), everyone.end(), 0);
  const Communicator all = world.group(everyone, "all");
  const int ranks = all.size();
  at::Tensor sum = at::full({300'000}, all.rank(), at::kFloat);
  all.all_reduce(sum);
  bool right = sum.equal(at::full({300'000}, ranks * (ranks - 1) / 2, at::kFloat));
  right = right && all.all_gather(at::full({1}, all.rank())).equal(at::arange(ranks));
  at::Tensor received = at::full({200'000}, -1);
  Pending receive = all.post_receive(received, (all.rank() + 1) % ranks);
  all.send(at::full({200'000}, all.rank()), (all.rank() + ranks - 1) % ranks);
  receive.wait();
  return right && received.equal(at::full({200'000}, (all.rank() + 1) % ranks));
}

// Rank 1 vanishes without a word; the others must hear of it long before the deadline.
bool death_is_noticed(World& world) {
  const Communicator pair = world.group({0, 1}, "pair");
  if (world.rank() == 1) _exit(0);
  try {
    pair.barrier();
  } catch (const tessera::CommunicationError& error) {
    return std::string(error.what()).find("rank 1 has ended") != std::string::npos;
  }
  return false;
}

// Rank 0 posts and ends; the others come later.
bool what_was_posted_is_done(World& world) {
  std::vector<int> everyone(static_cast<std::size_t>(world.size()));
  std::iota(everyone.begin(), everyone.end(), 0);
  const Communicator all = world.group(everyone, "all");
  const at::Tensor sum = at::full({10}, 1, at::kFloat);
  if (all.rank() > 0) usleep(100'000);
  Pending pending = all.all_reduce_coalesced({sum});
  if (all.rank() == 0) return true;
  pending.wait();
  return sum.equal(at::full({10}, all.size(), at::kFloat));
}

bool run(const std::string& scenario, World& world) {
  if (scenario == "death") return death_is_noticed(world);
  return scenario == "posted" ? what_was_posted_is_done(world) : collectives_agree(world);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) return 2;
  const std::string transport = argv[1];
  const int rank = std::stoi(argv[3]);
  const int size = std::stoi(argv[4]);
  const std::string scenario = argv[5];
  try {
    tessera::comm::WorldOptions options;
    options.timeout = std::chrono::seconds(60);
    const auto store = c10::make_intrusive<c10d::FileStore>(argv[2], size);
    const auto world = tessera::comm::make_process_world(rank, size, rank, store, transport, options);
    return run(scenario, *world) ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "rank %d: %s\n", rank, error.what());
    return 3;
  }
}
