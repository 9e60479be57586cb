// SPDX-License-Identifier: Apache-2.0
// Which rank the variables of each launcher name, and which sets of variables are refused.
#include "tessera/launch/environment.h"

#include <gtest/gtest.h>

#include <map>

#include "launch/host_list.h"
#include "launch/numbers.h"
#include "tessera/base/error.h"

namespace tessera::launcher {
namespace {

using Table = std::map<std::string, std::string>;

EnvironmentLookup lookup_in(Table table) {
  return [table = std::move(table)](const char* name) -> std::optional<std::string> {
    const auto found = table.find(name);
    return found == table.end() ? std::nullopt : std::optional(found->second);
  };
}

Table torchrun(int rank, int world_size) {
  return {{"RANK", std::to_string(rank)},       {"WORLD_SIZE", std::to_string(world_size)},
          {"LOCAL_RANK", std::to_string(rank)}, {"LOCAL_WORLD_SIZE", std::to_string(world_size)},
          {"MASTER_ADDR", "127.0.0.1"},         {"MASTER_PORT", "29500"}};
}

Table with(Table table, const Table& changes) {
  for (const auto& [name, value] : changes) {
    table[name] = value;
  }
  return table;
}

Table without(Table table, const std::string& name) {
  table.erase(name);
  return table;
}

struct Expected {
  RankSource source = RankSource::kNone;
  int rank = 0;
  int world_size = 1;
  int local_rank = 0;
  int local_world_size = 1;
  std::string master_address{};
};

struct GoodCase {
  const char* name;
  Table table;
  Expected expected;
};

class GoodEnvironment : public testing::TestWithParam<GoodCase> {};

TEST_P(GoodEnvironment, NamesTheRank) {
  const Expected& expected = GetParam().expected;
  const RankEnvironment found = detect_ranks(lookup_in(GetParam().table));
  EXPECT_EQ(found.source, expected.source) << name_of(found.source);
  EXPECT_EQ(found.rank, expected.rank);
  EXPECT_EQ(found.world_size, expected.world_size);
  EXPECT_EQ(found.local_rank, expected.local_rank);
  EXPECT_EQ(found.local_world_size, expected.local_world_size);
  EXPECT_EQ(found.master_address, expected.master_address);
  EXPECT_EQ(found.hint, "");
}

const Table kSlurmTwoNodes = {
    {"SLURM_PROCID", "5"},        {"SLURM_NTASKS", "7"},           {"SLURM_LOCALID", "1"},
    {"SLURM_NODEID", "1"},        {"SLURM_JOB_ID", "77"},          {"SLURM_STEP_ID", "0"},
    {"SLURM_JOB_NUM_NODES", "2"}, {"SLURM_TASKS_PER_NODE", "4,3"}, {"SLURM_JOB_NODELIST", "node[07-08]"}};
const Table kOpenMpi = {{"OMPI_COMM_WORLD_RANK", "1"},
                        {"OMPI_COMM_WORLD_SIZE", "2"},
                        {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                        {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                        {"PMIX_NAMESPACE", "2029780993"}};

INSTANTIATE_TEST_SUITE_P(
    Launch, GoodEnvironment,
    testing::Values(
        GoodCase{"Nothing", {}, {}}, GoodCase{"EmptyVariablesCountAsUnset", {{"RANK", ""}, {"WORLD_SIZE", ""}}, {}},
        GoodCase{"Torchrun", torchrun(3, 4), {RankSource::kTorchrun, 3, 4, 3, 4, "127.0.0.1"}},
        GoodCase{"TorchrunOnTwoMachines",
                 with(torchrun(5, 8), {{"LOCAL_RANK", "1"}, {"LOCAL_WORLD_SIZE", "4"}, {"MASTER_ADDR", "node1"}}),
                 {RankSource::kTorchrun, 5, 8, 1, 4, "node1"}},
        GoodCase{"HandMadeWorldOfOne", {{"RANK", "0"}, {"WORLD_SIZE", "1"}}, {RankSource::kTorchrun, 0, 1, 0, 1}},
        GoodCase{"HandMadeOnLoopbackIsLocal",
                 {{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "localhost"}, {"MASTER_PORT", "1234"}},
                 {RankSource::kTorchrun, 1, 2, 1, 2, "localhost"}},
        GoodCase{"OurLauncher",
                 with(torchrun(1, 2), {{"TESSERA_STORE_FD", "5"}, {"TESSERA_CONTROL_FD", "6"}}),
                 {RankSource::kTessera, 1, 2, 1, 2}},
        GoodCase{"TorchrunInsideOurLauncher",
                 with(torchrun(1, 2), {{"TESSERA_STORE_FD", "5"}, {"TORCHELASTIC_RUN_ID", "x"}}),
                 {RankSource::kTorchrun, 1, 2, 1, 2, "127.0.0.1"}},
        GoodCase{"SlurmOnOneMachine",
                 {{"SLURM_PROCID", "1"}, {"SLURM_NTASKS", "2"}, {"SLURM_LOCALID", "1"}},
                 {RankSource::kSlurm, 1, 2, 1, 2, "127.0.0.1"}},
        GoodCase{"SlurmMeetsOnItsFirstHost", kSlurmTwoNodes, {RankSource::kSlurm, 5, 7, 1, 3, "node07"}},
        GoodCase{"SlurmFollowsMasterAddr",
                 with(kSlurmTwoNodes, {{"MASTER_ADDR", "head"}}),
                 {RankSource::kSlurm, 5, 7, 1, 3, "head"}},
        GoodCase{"SlurmBatchShellIsNoRank", {{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "1"}, {"SLURM_JOB_ID", "77"}}, {}},
        GoodCase{"OpenMpi", kOpenMpi, {RankSource::kOpenMpi, 1, 2, 1, 2, "127.0.0.1"}},
        GoodCase{"Mpich",
                 {{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}, {"MPI_LOCALRANKID", "1"}, {"MPI_LOCALNRANKS", "2"}},
                 {RankSource::kPmi, 1, 2, 1, 2, "127.0.0.1"}},
        GoodCase{"ElasticTorchrunPerSlurmTaskNumbersInItsOwnOrder",
                 with(with(torchrun(0, 8), {{"LOCAL_RANK", "0"}, {"LOCAL_WORLD_SIZE", "4"}, {"MASTER_ADDR", "b"}}),
                      {{"TORCHELASTIC_RUN_ID", "x"}, {"SLURM_PROCID", "1"}, {"SLURM_NTASKS", "2"}}),
                 {RankSource::kTorchrun, 0, 8, 0, 4, "b"}},
        GoodCase{"RankAndSlurmThatAgree",
                 with(torchrun(1, 2), {{"SLURM_PROCID", "1"}, {"SLURM_NTASKS", "2"}, {"SLURM_LOCALID", "1"}}),
                 {RankSource::kTorchrun, 1, 2, 1, 2, "127.0.0.1"}},
        GoodCase{"MpirunWhoseDaemonsSlurmStarted",
                 with(kOpenMpi, {{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "1"}}),
                 {RankSource::kOpenMpi, 1, 2, 1, 2, "127.0.0.1"}}),
    [](const auto& test_case) { return test_case.param.name; });

struct BadCase {
  const char* name;
  Table table;
  /// All of these must be in the message.
  std::vector<std::string> named;
};

class BadEnvironment : public testing::TestWithParam<BadCase> {};

TEST_P(BadEnvironment, IsRefusedByName) {
  try {
    (void)detect_ranks(lookup_in(GetParam().table));
    FAIL() << "accepted";
  } catch (const ConfigError& error) {
    for (const std::string& part : GetParam().named) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << part << "\n  in " << error.what();
    }
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Launch, BadEnvironment,
    testing::Values(
        BadCase{"RankNotBelowWorldSize", torchrun(4, 4), {"RANK=4", "WORLD_SIZE=4", "0 to 3"}},
        BadCase{"NegativeRank", torchrun(-1, 4), {"RANK=-1", "0 or more"}},
        BadCase{"RankIsAWord", with(torchrun(0, 4), {{"RANK", "first"}}), {"RANK=first", "not a whole number"}},
        BadCase{"RankWithRest", with(torchrun(0, 4), {{"RANK", "1x"}}), {"RANK=1x"}},
        BadCase{"RankTooLong", with(torchrun(0, 4), {{"RANK", "99999999999999999999"}}), {"RANK=9999999999"}},
        BadCase{"WorldSizeZero", torchrun(0, 0), {"WORLD_SIZE=0", "1 to"}},
        BadCase{"WorldSizeMissing", without(torchrun(0, 4), "WORLD_SIZE"), {"WORLD_SIZE is not set", "RANK"}},
        BadCase{"RankMissing", without(torchrun(0, 4), "RANK"), {"RANK is not set"}},
        BadCase{"OnlyLocalRank", {{"LOCAL_RANK", "0"}}, {"RANK is not set", "WORLD_SIZE is not set"}},
        BadCase{"LocalRankTooLarge", with(torchrun(0, 4), {{"LOCAL_RANK", "4"}}), {"LOCAL_RANK=4", "0 to 3"}},
        BadCase{"LocalWorldLargerThanWorld",
                with(torchrun(0, 2), {{"LOCAL_WORLD_SIZE", "4"}}),
                {"LOCAL_WORLD_SIZE=4", "WORLD_SIZE=2"}},
        BadCase{"LocalRankContradictsRank", with(torchrun(2, 4), {{"LOCAL_RANK", "1"}}), {"LOCAL_RANK=1", "RANK=2"}},
        BadCase{"LocalRankMissingOnSeveralMachines",
                {{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "node1"}, {"MASTER_PORT", "1"}},
                {"LOCAL_RANK is not set", "LOCAL_WORLD_SIZE is not set"}},
        BadCase{"MasterAddrMissing", without(torchrun(0, 4), "MASTER_ADDR"), {"MASTER_ADDR is not set"}},
        BadCase{"MasterPortMissing", without(torchrun(0, 4), "MASTER_PORT"), {"MASTER_PORT is not set"}},
        BadCase{"MasterPortTooLarge", with(torchrun(0, 4), {{"MASTER_PORT", "70000"}}), {"MASTER_PORT=70000", "65535"}},
        BadCase{"SlurmWithoutSize", {{"SLURM_PROCID", "0"}}, {"SLURM_STEP_NUM_TASKS is not set", "SLURM_PROCID"}},
        BadCase{"SlurmTasksPerNodeMalformed",
                with(kSlurmTwoNodes, {{"SLURM_TASKS_PER_NODE", "4(x"}}),
                {"SLURM_TASKS_PER_NODE=4(x", "node 1"}},
        BadCase{"SlurmHostListMalformed",
                with(kSlurmTwoNodes, {{"SLURM_JOB_NODELIST", "node[07"}}),
                {"SLURM_JOB_NODELIST=node[07"}},
        BadCase{"OpenMpiWithoutLocalRank",
                without(kOpenMpi, "OMPI_COMM_WORLD_LOCAL_RANK"),
                {"OMPI_COMM_WORLD_LOCAL_RANK is not set"}},
        BadCase{"OpenMpiOnSeveralMachinesWithoutAddress",
                with(kOpenMpi, {{"OMPI_COMM_WORLD_SIZE", "4"}}),
                {"MASTER_ADDR is not set", "mpirun -x"}},
        BadCase{"MpichWithoutLocalRank", {{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}}, {"MPI_LOCALRANKID is not set"}},
        BadCase{"RankContradictsSlurm",
                with(torchrun(0, 2), {{"SLURM_PROCID", "1"}, {"SLURM_NTASKS", "2"}, {"SLURM_LOCALID", "1"}}),
                {"torchrun says rank 0 of 2", "Slurm says rank 1 of 2"}},
        BadCase{"RankContradictsOpenMpi",
                with(kOpenMpi, with(torchrun(0, 4), {})),
                {"torchrun says rank 0 of 4", "Open MPI says rank 1 of 2"}}),
    [](const auto& test_case) { return test_case.param.name; });

TEST(DetectRanks, SlurmAllocationWithoutStepGivesAHint) {
  const auto found = detect_ranks(lookup_in({{"SLURM_JOB_ID", "77"}, {"SLURM_NTASKS", "4"}, {"SLURM_PROCID", "0"}}));
  EXPECT_EQ(found.source, RankSource::kNone);
  EXPECT_NE(found.hint.find("use srun"), std::string::npos) << found.hint;
}

TEST(DetectRanks, AgentStoreAndAttemptComeFromTorchrun) {
  const auto found = detect_ranks(
      lookup_in(with(torchrun(0, 2), {{"TORCHELASTIC_USE_AGENT_STORE", "True"}, {"TORCHELASTIC_RESTART_COUNT", "3"}})));
  EXPECT_TRUE(found.launcher_hosts_store);
  EXPECT_EQ(found.restart_count, 3);
  EXPECT_EQ(found.master_port, 29500);
}

TEST(DetectRanks, RanksOfOneMpiJobDeriveTheSamePort) {
  const auto one = detect_ranks(lookup_in(kOpenMpi));
  const auto other =
      detect_ranks(lookup_in(with(kOpenMpi, {{"OMPI_COMM_WORLD_RANK", "0"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "0"}})));
  EXPECT_EQ(one.master_port, other.master_port);
  EXPECT_GE(one.master_port, 1024);
}

TEST(ReadSwitches, DefaultsHoldWithoutVariables) {
  const Switches switches = read_switches(lookup_in({}));
  EXPECT_FALSE(switches.strict);
  EXPECT_TRUE(switches.color);
  EXPECT_FALSE(switches.timeout.has_value());
}

TEST(ReadSwitches, VariablesAreFollowed) {
  const Switches switches =
      read_switches(lookup_in({{"TESSERA_STRICT", "1"}, {"NO_COLOR", "yes"}, {"TESSERA_TIMEOUT", "2.5"}}));
  EXPECT_TRUE(switches.strict);
  EXPECT_FALSE(switches.color);
  EXPECT_EQ(switches.timeout, std::chrono::milliseconds(2500));
}

TEST(ReadSwitches, RefusesWhatIsNoSwitchOrTime) {
  for (const Table& table :
       {Table{{"TESSERA_STRICT", "yes"}}, Table{{"TESSERA_TIMEOUT", "soon"}}, Table{{"TESSERA_TIMEOUT", "0"}},
        Table{{"TESSERA_TIMEOUT", "-1"}}, Table{{"TESSERA_TIMEOUT", "nan"}}, Table{{"TESSERA_TIMEOUT", "1e99"}}}) {
    EXPECT_THROW((void)read_switches(lookup_in(table)), ConfigError) << table.begin()->second;
  }
}

TEST(HostList, FirstHostIsExpanded) {
  using detail::first_host;
  EXPECT_EQ(first_host("node1"), "node1");
  EXPECT_EQ(first_host("a,b"), "a");
  EXPECT_EQ(first_host("node[03-05,9],gpu1"), "node03");
  EXPECT_EQ(first_host("gpu1,node[03-05]"), "gpu1");
  EXPECT_EQ(first_host("rack[2-3]n[7,9]"), "rack2n7");
  EXPECT_EQ(first_host("node[03"), std::nullopt);
  EXPECT_EQ(first_host("node[]"), std::nullopt);
  EXPECT_EQ(first_host(""), std::nullopt);
}

TEST(HostList, TasksPerNodeAreExpanded) {
  using detail::tasks_on_node;
  EXPECT_EQ(tasks_on_node("4(x2),3", 0), 4);
  EXPECT_EQ(tasks_on_node("4(x2),3", 1), 4);
  EXPECT_EQ(tasks_on_node("4(x2),3", 2), 3);
  EXPECT_EQ(tasks_on_node("4(x2),3", 3), std::nullopt);
  EXPECT_EQ(tasks_on_node("4(x0)", 0), std::nullopt);
  EXPECT_EQ(tasks_on_node("x", 0), std::nullopt);
}

TEST(RankList, RunsAreFolded) {
  EXPECT_EQ(detail::format_rank_list({0, 1, 2, 5}), "0-2, 5");
  EXPECT_EQ(detail::format_ranks_of({2}, 4), "rank 2 of 4");
  EXPECT_EQ(detail::format_ranks_of({0, 3}, 4), "ranks 0, 3 of 4");
}

}  // namespace
}  // namespace tessera::launcher
