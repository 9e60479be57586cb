// SPDX-License-Identifier: Apache-2.0
// The jobs that every contract is checked on.
#include "comm/ranks.h"

#include "comm/gloo_backend.h"

namespace tessera::comm::testing {

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
