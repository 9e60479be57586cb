// SPDX-License-Identifier: Apache-2.0
// Loading the plug-in: what is refused, with which words, and what is taken. No GPU is needed.
#include "tessera/comm/cuda_plugin.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "comm/cuda_plugin_entry.h"
#include "tessera/base/error.h"

namespace tessera::comm::detail {

namespace {

std::string refusal_of(const std::string& path, int num_gpus) {
  try {
    static_cast<void>(load_cuda_plugin(path, num_gpus));
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST(CudaPlugin, RefusesAMachineWithoutGpuBeforeItLoadsAnything) {
  const std::string message = refusal_of(TESSERA_SAME_PLUGIN, 0);
  EXPECT_TRUE(contains(message, "no GPU")) << message;
  EXPECT_TRUE(contains(message, "--device cpu")) << message;
}

TEST(CudaPlugin, RefusesAMissingFileInTheWordsOfTheLoader) {
  const std::string message = refusal_of("/nowhere/libtessera_cuda.so", 1);
  EXPECT_TRUE(contains(message, "/nowhere/libtessera_cuda.so: cannot open shared object file")) << message;
  EXPECT_TRUE(contains(message, "TESSERA_WITH_CUDA=ON")) << message;
}

TEST(CudaPlugin, RefusesALibraryThatIsNoPlugin) {
  const std::string message = refusal_of("libm.so.6", 1);
  EXPECT_TRUE(contains(message, "no symbol tessera_cuda_plugin")) << message;
}

TEST(CudaPlugin, RefusesAnotherVersionAndNamesBoth) {
  const std::string message = refusal_of(TESSERA_OTHER_PLUGIN, 1);
  EXPECT_TRUE(contains(message, "Tessera 0.0.1 on LibTorch 1.0")) << message;
  EXPECT_TRUE(contains(message, expected_plugin_versions())) << message;
}

TEST(CudaPlugin, ReturnsTheMakersOfAPluginOfThisVersion) {
  const auto makers = load_cuda_plugin(TESSERA_SAME_PLUGIN, 1);
  EXPECT_EQ(makers.size(), 1U);
  EXPECT_TRUE(makers.contains("fake"));
}

TEST(CudaPlugin, IsLookedForBesideTheLibraryOrByItsName) {
  const std::filesystem::path path = cuda_plugin_path();
  EXPECT_EQ(path.filename(), "libtessera_cuda.so");
  EXPECT_EQ(path.has_parent_path(), std::filesystem::exists(path));
}

TEST(CudaPlugin, IsRefusedHereExactlyWhereThereIsNoGpu) {
  if (count_gpus() > 0) GTEST_SKIP() << "this machine has a GPU; what then follows is tested by cuda_test";
  EXPECT_THROW(static_cast<void>(load_cuda_makers()), ConfigError);
}

}  // namespace

}  // namespace tessera::comm::detail
