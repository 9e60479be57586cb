// SPDX-License-Identifier: Apache-2.0
// Training on a GPU, one device against meshes: the program's own check, for each of its models.
#include <sys/wait.h>

#include <cstdlib>

#include "cuda/gpu.h"

namespace tessera::test {

namespace {

struct Run {
  const char* name;
  const char* flags;
};

void PrintTo(const Run& run, std::ostream* out) { *out << run.flags; }

class GpuEquivalence : public OnGpu<::testing::TestWithParam<Run>> {};

TEST_P(GpuEquivalence, MeshesOfUpToFourRanksComputeWhatOneDeviceComputes) {
  const std::string command = std::string(TESSERA_PROGRAM) + " verify --device cuda --ranks threads --meshes all:4 " +
                              GetParam().flags;
  const int status = std::system(command.c_str());
  ASSERT_TRUE(WIFEXITED(status)) << command;
  EXPECT_EQ(WEXITSTATUS(status), 0) << command;
}

constexpr Run kRuns[] = {{"Mlp", "--model mlp"},
                         {"Cnn", "--model cnn"},
                         {"Gpt", "--model gpt"},
                         // In double precision attention is decomposed; this takes the fused kernel.
                         {"GptFp32", "--model gpt --precision fp32"}};

INSTANTIATE_TEST_SUITE_P(Verify, GpuEquivalence, ::testing::ValuesIn(kRuns),
                         [](const auto& parameter) { return std::string(parameter.param.name); });

}  // namespace

}  // namespace tessera::test
