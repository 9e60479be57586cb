// SPDX-License-Identifier: Apache-2.0
// Configuration: every source of it, and every mistake with its place and remedy.
#include "tessera/train/config.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "tessera/base/error.h"
#include "support/temporary_folder.h"

namespace tessera::train {
namespace {

using test::message_of;
using test::TemporaryFolder;

TEST(ConfigReader, LaterSourcesWin) {
  ConfigReader reader;
  reader.read_text("batch = 8\nmesh = \"dp=2,tp=2\"\n[model]\nname = \"mlp\"\nsizes = [3, 4]\n[optimizer]\nlr = 1\n",
                   "a.toml");
  reader.assign("optimizer.lr=2e-3", "--set");
  reader.set("batch", "32", "--batch");
  const auto config = reader.finish();
  EXPECT_EQ(config.batch, 32);
  EXPECT_EQ(config.mesh, "dp=2,tp=2");
  EXPECT_EQ(config.model.sizes, (std::vector<std::int64_t>{3, 4}));
  EXPECT_EQ(config.optimizer.lr, 2e-3);
  EXPECT_TRUE(reader.is_set("batch"));
  EXPECT_FALSE(reader.is_set("seed"));
}

TEST(ConfigReader, ReadsListsAndTruthFromText) {
  ConfigReader reader;
  reader.set("model.sizes", "[64, 32,10]", "--sizes");
  reader.set("model.tie", "true", "--tie");
  const auto config = reader.finish();
  EXPECT_EQ(config.model.sizes, (std::vector<std::int64_t>{64, 32, 10}));
  EXPECT_TRUE(config.model.tie);
}

struct BadConfig {
  const char* text;
  const char* says;
};

TEST(ConfigReader, RefusesMistakesNamingPlaceValueAndRemedy) {
  const BadConfig cases[] = {
      {"[model]\nhiden = 3\n", "a.toml:2: \"model.hiden\" is not a known key; did you mean \"model.hidden\"?"},
      {"hidden = 3\n", "a.toml:1: \"hidden\" is not a known key; did you mean \"model.hidden\"?"},
      {"\n[msh]\ntp = 2\n", "a.toml:2: \"msh\" is not a known key; did you mean \"mesh\"?"},
      {"tensor_model_parallel_size = 2\n", "here this is mesh = \"tp=N\""},
      {"micro_batch_size = 2\n", "here this is batch (global, over all ranks)"},
      {"[optimizer]\nlearning_rate = 2\n", "here this is optimizer.lr"},
      {"[optimizer]\nlr = \"fast\"\n", "a.toml:2: optimizer.lr = \"fast\"; allowed: a number from 0 to 1000000"},
      {"[optimizer]\nlr = nan\n", "optimizer.lr = nan"},
      {"[optimizer]\nclip = -1\n", "optimizer.clip = -1; allowed: a number from 0"},
      {"[optimizer]\nname = \"adamv\"\n", "allowed: one of adamw, adam, sgd"},
      {"batch = 2.5\n", "batch = 2.5; allowed: an integer from 1"},
      {"batch = 0\n", "batch = 0; allowed: an integer from 1"},
      {"batch = \"8\"\n", "batch = \"8\"; allowed: an integer"},
      {"steps = 99999999999999999999\n", "a.toml:1: "},
      {"batch = 1\nbatch = 2\n", "a.toml:2: "},
      {"batch 1\n", "a.toml:1: "},
      {"[model]\nsizes = []\n", "allowed: a list of integers"},
      {"[model]\nsizes = [1, \"a\"]\n", "allowed: a list of integers"},
      {"[model]\ntie = 1\n", "model.tie = 1; allowed: true or false"},
      {"model = 3\n", "a.toml:1: \"model\" is not a known key"},
      {"seed = 1979-05-27\n", "seed = a value of another type"},
      {"[batch]\nsize = 3\n", "batch = a value of another type; allowed: an integer"},
      {"[model]\nhidden = 10\nheads = 4\n", "a.toml:3: model.heads: hidden = 10 is not a multiple of heads = 4"},
      {"[model]\nname = \"cnn\"\nchannels = 6\n", "6 channels do not make 4 equal groups"},
      {"[model]\nname = \"mlp\"\nsizes = [6]\n", "at least an input and an output width"},
      {"[model]\nname = \"mlp\"\n[data]\nsource = \"text\"\n", "model mlp cannot be trained on \"text\""},
      {"[data]\nsource = \"txt\"\n", "did you mean \"text\"?"},
      {"eval_every = 5\n[data]\norder = \"sequential\"\n", "holds no data out"},
      {"mesh = \"xp=2\"\n", "a.toml:1: mesh: "},
      {"batch = 3\nmesh = \"dp=2,dp_shard=2\"\n", "a.toml:1: batch: 3 samples do not reach all 4 data-parallel ranks"},
      {"steps = 3\nepochs = 2\n", "a.toml:1: steps: epochs = 2 is set as well"},
  };
  for (const auto& row : cases) {
    ConfigReader reader;
    reader.read_text(row.text, "a.toml");
    const auto message = message_of<ConfigError>([&] { (void)reader.finish(); });
    EXPECT_NE(message.find(row.says), std::string::npos) << row.text << message;
    EXPECT_EQ(std::count(message.begin(), message.end(), '\n'), 0) << message;
  }
}

TEST(ConfigReader, RefusesBadAssignmentsAndFiles) {
  const TemporaryFolder folder;
  const auto refuse = [](auto&& use) {
    ConfigReader reader;
    use(reader);
    return message_of<ConfigError>([&] { (void)reader.finish(); });
  };
  EXPECT_NE(refuse([](ConfigReader& reader) { reader.assign("batch", "--set"); }).find("write section.key=value"),
            std::string::npos);
  EXPECT_NE(refuse([](ConfigReader& reader) {
              reader.set("steps", "1e99", "--steps");
            }).find("--steps: steps = \"1e99\"; allowed: an integer"),
            std::string::npos);
  EXPECT_NE(refuse([](ConfigReader& reader) { reader.set("model.sizes", "1,,2", "--sizes"); }).find("list of integers"),
            std::string::npos);
  EXPECT_NE(refuse([&](ConfigReader& reader) { reader.read_file(folder.path()); }).find("no such file"),
            std::string::npos);
  const auto large = folder.write("large.toml", std::string((1 << 20) + 1, '#'));
  EXPECT_NE(refuse([&](ConfigReader& reader) { reader.read_file(large); }).find("at most 1048576"), std::string::npos);
}

TEST(ConfigReader, ReportsAllProblemsAtOnceOneLineEach) {
  ConfigReader reader;
  reader.read_text("batch = 0\nfoo = 1\n[model]\nheads = 3\n", "a.toml");
  reader.assign("optimizer.lr=x", "--set");
  const auto message = message_of<ConfigError>([&] { (void)reader.finish(); });
  EXPECT_EQ(std::count(message.begin(), message.end(), '\n'), 3) << message;
}

TEST(ConfigFields, HaveDistinctKeysFlagsAndLegalDefaults) {
  std::set<std::string> keys, flags;
  const TrainConfig defaults;
  for (const auto& field : config_fields()) {
    EXPECT_TRUE(keys.insert(field.key).second) << field.key;
    EXPECT_TRUE(flags.insert(field.flag).second) << field.flag;
    EXPECT_EQ(field.flag.find('_'), std::string::npos) << field.flag;
    EXPECT_FALSE(field.doc.empty()) << field.key;
    ConfigReader reader;
    reader.set(field.key, format_value(field, defaults), "default");
    EXPECT_EQ(reader.finish(), defaults) << field.key;
  }
}

TEST(ConfigFormat, TomlReadsBackAsTheSameTree) {
  TrainConfig config;
  config.model.name = "mlp";
  config.model.sizes = {7, 5, 3};
  config.model.tie = true;
  config.data.source = "csv:a \"quoted\"\\file.csv";
  config.optimizer.lr = 1.0 / 3.0;
  config.timeout_s = 2;
  config.mesh = "dp_replicate=2";
  ConfigReader reader;
  reader.read_text(format_toml(config), "dump");
  EXPECT_EQ(reader.finish(), config);
}

TEST(ConfigFormat, TomlLeavesOutTheStepsThatEpochsReplace) {
  TrainConfig config;
  config.epochs = 3;
  ConfigReader reader;
  reader.read_text(format_toml(config), "dump");
  EXPECT_EQ(reader.finish(), config);
}

TEST(ConfigFormat, JsonHasEveryKeyUnderItsSection) {
  const auto json = nlohmann::json::parse(format_json(TrainConfig{}));
  for (const auto& field : config_fields()) {
    auto pointer = "/" + field.key;
    std::replace(pointer.begin(), pointer.end(), '.', '/');
    EXPECT_TRUE(json.contains(nlohmann::json::json_pointer(pointer))) << field.key;
  }
  EXPECT_EQ(json["model"]["hidden"], 160);
}

}  // namespace
}  // namespace tessera::train
