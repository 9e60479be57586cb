// SPDX-License-Identifier: Apache-2.0
// Schedules as text: round trips, what is tolerated, and what is refused with line and word.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "pipeline/refusal.h"
#include "tessera/pipeline/schedule.h"

namespace tessera::pipeline {
namespace {

using test::message_of;
using ::testing::HasSubstr;

std::string refusal(std::string_view text) {
  return message_of([&] { (void)parse_schedule(text, "own"); });
}

TEST(TextForm, FormatAndParseAreInverse) {
  for (const std::string& name : schedule_names()) {
    for (const int ranks : {1, 2, 5}) {
      const Schedule schedule = make_schedule(name, {.ranks = ranks, .microbatches = 11});
      EXPECT_EQ(parse_schedule(format_schedule(schedule), name), schedule) << name;
    }
  }
}
TEST(TextForm, IsOneRowPerRankUnderAComment) {
  EXPECT_EQ(format_schedule(make_schedule("1f1b", {.ranks = 2, .microbatches = 2})),
            "# 1f1b: ranks 2, chunks per rank 1, micro-batches 2\n"
            "0F0,0F1,0B0,0B1\n"
            "1F0,1B0,1F1,1B1\n");
}
TEST(TextForm, ToleratesBlanksEmptyCellsCommentsAndOtherLineEnds) {
  const Schedule schedule = parse_schedule("\n# mine\r\n 0F0, ,,0I0 0W0,\r\n\n,1F0,1I0 , 1W0 # last", "own");
  EXPECT_EQ(schedule.num_ranks, 2);
  EXPECT_EQ(format_schedule(schedule),
            "# own: ranks 2, chunks per rank 1, micro-batches 1\n0F0,0I0,0W0\n1F0,1I0,1W0\n");
  EXPECT_TRUE(schedule.splits_backward);
  EXPECT_NO_THROW(validate(schedule));
}
TEST(TextForm, TakesTheStageMapFromTheRows) {
  const Schedule schedule = parse_schedule("0F0,3F0,3B0,0B0\n1F0,2F0,2B0,1B0", "own");
  EXPECT_EQ(schedule.rank_of_stage, (std::vector<int>{0, 1, 1, 0}));
  EXPECT_EQ(schedule.num_chunks, 2);
  EXPECT_NO_THROW(validate(schedule));
}

TEST(TextForm, ReadsFilesOfPyTorch) {
  // As its csv writer leaves them: idle slots are empty cells.
  const Schedule schedule = parse_schedule("0F0,0F1,,,0B0,,0B1\r\n,1F0,1B0,1F1,1B1,,\r\n", "own");
  EXPECT_EQ(schedule.actions, make_schedule("1f1b", {.ranks = 2, .microbatches = 2}).actions);
}

TEST(TextForm, RefusesWordsThatAreNoActions) {
  EXPECT_EQ(
      refusal("0F0\n# two\n1F0,1X0"),
      "schedule own, line 3: \"1X0\" is not STAGE KIND MICROBATCH, for instance 0F1; kinds are F forward, B backward, "
      "I input gradient, W weight gradient");
  for (const char* word :
       {"F", "0", "0F", "F0", "0f0", "-1F0", "0F-1", "0F0x", "0FF0", "99999999999F0", "0F99999999"}) {
    EXPECT_THAT(refusal(word), HasSubstr(std::string("line 1: \"") + word + "\" is not STAGE KIND MICROBATCH")) << word;
  }
}
TEST(TextForm, RefusesTransfersAndSaysWhy) {
  EXPECT_THAT(refusal("0F0,0SEND_F0"),
              HasSubstr("\"0SEND_F0\" is not STAGE KIND MICROBATCH, for instance 0F1; leave transfers out"));
}
TEST(TextForm, RefusesAStageInTwoRows) {
  EXPECT_EQ(refusal("0F0,0B0\n1F0,0F1"),
            "schedule own, line 2: \"0F1\": stage 0 is already in the row of rank 0; a stage lies on one rank");
}
TEST(TextForm, RefusesGapsAndUnequalRows) {
  EXPECT_THAT(refusal("0F0,0B0\n2F0,2B0"), HasSubstr("stage 1 is missing, but there is a stage 2"));
  EXPECT_THAT(refusal("0F0,1F0\n2F0"), HasSubstr("3 stages on 2 ranks"));
  EXPECT_THAT(refusal("# nothing\n\n"), HasSubstr("no actions"));
  EXPECT_THAT(refusal(""), HasSubstr("no actions"));
}

class ScheduleFile : public ::testing::Test {
 protected:
  ScheduleFile() : path_(std::filesystem::temp_directory_path() / ("tessera_schedule_" + test_name() + ".txt")) {}
  ~ScheduleFile() override { std::filesystem::remove(path_); }

  std::string write(const std::string& text) {
    std::ofstream(path_) << text;
    return "file:" + path_.string();
  }

  static std::string test_name() { return ::testing::UnitTest::GetInstance()->current_test_info()->name(); }

  std::filesystem::path path_;
};

TEST_F(ScheduleFile, IsAScheduleByTheNameFilePath) {
  const Schedule original = make_schedule("zbv", {.ranks = 3, .microbatches = 7});
  const std::string name = write(format_schedule(original));
  Schedule read = make_schedule(name, {.ranks = 3, .microbatches = 7});
  EXPECT_EQ(read, make_schedule(name, {.ranks = 0, .microbatches = 0}));
  EXPECT_EQ(read.name, name);
  read.name = original.name;
  EXPECT_EQ(read, original);
}
TEST_F(ScheduleFile, RefusesOtherNumbersThanTheOptionsSay) {
  const std::string name = write("0F0,0B0\n1F0,1B0\n");
  EXPECT_EQ(message_of([&] { (void)make_schedule(name, {.ranks = 4, .microbatches = 1}); }),
            "schedule \"" + name + "\" is for 2 ranks, not 4; change the file or the number");
  EXPECT_THAT(message_of([&] { (void)make_schedule(name, {.ranks = 2, .microbatches = 8}); }),
              HasSubstr("for 1 micro-batches"));
  EXPECT_THAT(message_of([&] { (void)make_schedule(name, {.ranks = 2, .chunks = 2}); }),
              HasSubstr("for 1 chunks per rank"));
}
TEST_F(ScheduleFile, RefusesAnInvalidSchedule) {
  const std::string name = write("0B0,0F0\n");
  EXPECT_THAT(message_of([&] { (void)make_schedule(name, {}); }), HasSubstr("0B0 comes before 0F0"));
}
TEST_F(ScheduleFile, RefusesWhatCannotBeRead) {
  EXPECT_EQ(message_of([] { (void)make_schedule("file:/nowhere/at.all", {}); }),
            "schedule \"file:/nowhere/at.all\": the file cannot be read; name an existing one");
  EXPECT_THAT(message_of([] { (void)make_schedule("file:/", {}); }), HasSubstr("cannot be read"));
}
TEST_F(ScheduleFile, RefusesNumbersThatTheActionsCannotFill) {
  const std::string name = write("0F0,0F1,0F9999999\n");
  EXPECT_THAT(message_of([&] { (void)make_schedule(name, {.microbatches = 0}); }),
              HasSubstr("need twice as many actions"));
}

}  // namespace
}  // namespace tessera::pipeline
