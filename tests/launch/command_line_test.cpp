// SPDX-License-Identifier: Apache-2.0
// launch()'s own flags leave argv, everything else stays.
#include "launch/command_line.h"

#include <gtest/gtest.h>

#include <vector>

#include "tessera/base/error.h"
#include "tessera/launch/run.h"

namespace tessera::launcher {
namespace {

struct Arguments {
  explicit Arguments(std::vector<std::string> given) : words(std::move(given)) {
    for (std::string& word : words) {
      pointers.push_back(word.data());
    }
    pointers.push_back(nullptr);
  }
  detail::LaunchFlags take() {
    int argc = static_cast<int>(words.size());
    const auto flags = detail::take_launch_flags(argc, pointers.data());
    EXPECT_EQ(pointers[static_cast<std::size_t>(argc)], nullptr);
    left.assign(pointers.begin(), pointers.begin() + argc);
    return flags;
  }
  std::vector<std::string> words;
  std::vector<char*> pointers;
  std::vector<std::string> left;
};

TEST(LaunchFlags, AreRemovedAndTheRestKeepsItsOrder) {
  Arguments arguments({"prog", "--lr", "0.1", "--nproc", "4", "--transport=gloo", "file"});
  const auto flags = arguments.take();
  EXPECT_EQ(flags.nproc, 4);
  EXPECT_EQ(flags.transport, "gloo");
  EXPECT_EQ(arguments.left, (std::vector<std::string>{"prog", "--lr", "0.1", "file"}));
}

TEST(LaunchFlags, BothSpellingsOfNprocPerNodeCount) {
  EXPECT_EQ(Arguments({"prog", "--nproc-per-node=2"}).take().nproc, 2);
  EXPECT_EQ(Arguments({"prog", "--nproc_per_node", "3"}).take().nproc, 3);
}

TEST(LaunchFlags, NothingBehindTheDashesIsTouched) {
  Arguments arguments({"prog", "--", "--nproc", "4"});
  EXPECT_FALSE(arguments.take().nproc.has_value());
  EXPECT_EQ(arguments.left, (std::vector<std::string>{"prog", "--", "--nproc", "4"}));
}

TEST(LaunchFlags, RefusesMissingRepeatedAndImpossibleValues) {
  EXPECT_THROW(Arguments({"prog", "--nproc"}).take(), ConfigError);
  EXPECT_THROW(Arguments({"prog", "--nproc", "0"}).take(), ConfigError);
  EXPECT_THROW(Arguments({"prog", "--nproc", "many"}).take(), ConfigError);
  EXPECT_THROW(Arguments({"prog", "--nproc", "5000"}).take(), ConfigError);
  EXPECT_THROW(Arguments({"prog", "--nproc", "2", "--nproc=2"}).take(), ConfigError);
}

TEST(RunProgram, RefusesSeveralMachinesWithAWayOut) {
  RunOptions options;
  options.nnodes = "2";
  try {
    (void)run_program(options, {"true"});
    FAIL() << "accepted";
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("--nnodes 2"), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("torchrun"), std::string::npos);
  }
}

TEST(RunProgram, RefusesProgramsThatCannotBeStarted) {
  for (const std::vector<std::string>& command :
       {std::vector<std::string>{}, {""}, {"no-such-program-here"}, {"/no/such/file"}, {"/etc/passwd"}, {"/tmp"}}) {
    EXPECT_THROW((void)run_program({}, command), ConfigError);
  }
}

}  // namespace
}  // namespace tessera::launcher
