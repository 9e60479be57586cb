// SPDX-License-Identifier: Apache-2.0
// The start-up check of LibTorch's version.
#include "tessera/base/version.h"

#include <gtest/gtest.h>

#include <string>

#include "tessera/base/error.h"

namespace tessera::base {
namespace {

TEST(TorchVersion, OfTheLoadedLibraryIsTheOneCompiledAgainst) {
  EXPECT_EQ(loaded_torch_version(), compiled_torch_version());
  EXPECT_GE(loaded_torch_version(), (TorchVersion{2, 11, 0}));
  EXPECT_NO_THROW(check_torch_version());
}

TEST(TorchVersion, MayDifferInThePatch) { EXPECT_NO_THROW(check_torch_version({2, 11, 0}, {2, 11, 3})); }

TEST(TorchVersion, RefusesAnotherMinorAndNamesBoth) {
  try {
    check_torch_version({2, 11, 0}, {2, 15, 1});
    FAIL() << "2.15 was accepted by a library compiled against 2.11";
  } catch (const ConfigError& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("2.11.0"), std::string::npos) << message;
    EXPECT_NE(message.find("2.15.1"), std::string::npos) << message;
  }
}

TEST(TorchVersion, RefusesAnotherMajor) { EXPECT_THROW(check_torch_version({2, 11, 0}, {3, 11, 0}), ConfigError); }

TEST(Version, IsTheOneOfTheProject) { EXPECT_EQ(version(), TESSERA_EXPECTED_VERSION); }

}  // namespace
}  // namespace tessera::base
