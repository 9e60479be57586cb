// SPDX-License-Identifier: Apache-2.0
// The jobs that every contract is checked on.
#include "comm/ranks.h"

#include <cstdlib>

#include "comm/gloo_backend.h"

namespace tessera::comm::testing {
namespace {

// LibTorch's flight recorder notes a new process group in a map that it does not lock. One rank per process, as Gloo is
// used outside these tests, never notices; ranks that are threads crash now and then. Read once, at the first group.
[[maybe_unused]] const int kNoFlightRecorder = setenv("TORCH_FR_BUFFER_SIZE", "0", /*overwrite=*/1);

}  // namespace

std::vector<Job> our_jobs() {
  std::vector<Job> jobs;
  for (const char* transport : {"thread", "shm"}) {
    for (const int size : {1, 2, 3, 4, 8}) jobs.push_back({transport, size});
  }
  return jobs;
}

std::vector<Job> every_job() {
  std::vector<Job> jobs = our_jobs();
  if (!detail::has_gloo()) return jobs;
  for (const int size : {2, 3}) jobs.push_back({"gloo", size});
  return jobs;
}

}  // namespace tessera::comm::testing
