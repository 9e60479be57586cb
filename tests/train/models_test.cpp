// SPDX-License-Identifier: Apache-2.0
// The built-in models: names, counts, causality, initial values.
#include "tessera/train/models.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <set>

#include "tessera/base/error.h"
#include "tessera/train/workload.h"
#include "support/temporary_folder.h"

namespace tessera::train {
namespace {

using test::message_of;

std::vector<std::string> names_of(const torch::nn::Module& module) {
  std::vector<std::string> names;
  for (const auto& item : module.named_parameters()) names.push_back(item.key());
  return names;
}

ModelConfig tiny_gpt() {
  ModelConfig config;
  config.layers = 2;
  config.hidden = 8;
  config.heads = 2;
  config.vocab = 11;
  config.seq_len = 6;
  return config;
}

TEST(Mlp, NamesItsParametersAfterItsLayers) {
  const auto model = build_mlp({.sizes = {5, 4, 3}});
  EXPECT_EQ(names_of(*model), (std::vector<std::string>{"layer0.linear.weight", "layer0.linear.bias",
                                                        "layer1.linear.weight", "layer1.linear.bias"}));
  EXPECT_EQ(count_parameters(*model), 5 * 4 + 4 + 4 * 3 + 3);
}

TEST(Mlp, RefusesASingleWidth) { EXPECT_THROW((void)build_mlp({.sizes = {5}}), ConfigError); }

TEST(Cnn, NamesItsParametersAfterItsBlocks) {
  const auto model = build_cnn({.channels = 4, .blocks = 2});
  EXPECT_EQ(names_of(*model),
            (std::vector<std::string>{
                "stem.conv.weight", "stem.norm.weight", "stem.norm.bias", "block0.conv1.weight", "block0.norm1.weight",
                "block0.norm1.bias", "block0.conv2.weight", "block0.norm2.weight", "block0.norm2.bias",
                "block1.conv1.weight", "block1.norm1.weight", "block1.norm1.bias", "block1.conv2.weight",
                "block1.norm2.weight", "block1.norm2.bias", "block1.skip.weight", "head.out.weight", "head.out.bias"}));
}

TEST(Cnn, HasTheParametersOfItsFormula) {
  const std::int64_t c = 8;
  const auto model = build_cnn({.channels = c, .blocks = 4, .classes = 10});
  const auto block = [](std::int64_t in, std::int64_t out, bool skip) {
    return 9 * in * out + 9 * out * out + 4 * out + (skip ? in * out : 0);
  };
  EXPECT_EQ(count_parameters(*model), 9 * c + 2 * c + 2 * block(c, c, false) + block(c, 2 * c, true) +
                                          block(2 * c, 2 * c, false) + 2 * c * 10 + 10);
}

TEST(Cnn, MapsAnImageOfAnySideToOneLogitPerClass) {
  auto model = build_cnn({.channels = 4, .blocks = 2, .classes = 7});
  for (const std::int64_t side : {8, 9, 16}) {
    EXPECT_EQ(model->forward(torch::zeros({3, 1, side, side})).sizes(), (std::vector<std::int64_t>{3, 7}));
  }
}

TEST(Cnn, RefusesChannelsThatDoNotMakeFourGroups) {
  EXPECT_THROW((void)build_cnn({.channels = 6, .blocks = 2}), ConfigError);
}

TEST(Gpt, NamesItsParametersAfterItsBlocks) {
  const auto model = build_gpt({.layers = 1, .hidden = 8, .heads = 2, .vocab = 11, .seq_len = 6});
  EXPECT_EQ(names_of(*model),
            (std::vector<std::string>{"embed.tok.weight", "embed.pos.weight", "block0.ln1.weight", "block0.ln1.bias",
                                      "block0.qkv.weight", "block0.qkv.bias", "block0.proj.weight", "block0.proj.bias",
                                      "block0.ln2.weight", "block0.ln2.bias", "block0.up.weight", "block0.up.bias",
                                      "block0.down.weight", "block0.down.bias", "head.norm.weight", "head.norm.bias",
                                      "head.out.weight"}));
}

TEST(Gpt, HasTheParametersOfItsFormula) {
  const std::int64_t layers = 3, d = 8, f = 20, v = 11, t = 6;
  const auto block = 3 * d * d + 3 * d + d * d + d + d * f + f + f * d + d + 4 * d;
  const GptOptions options{.layers = layers, .hidden = d, .heads = 2, .ffn = f, .vocab = v, .seq_len = t};
  EXPECT_EQ(count_parameters(*build_gpt(options)), v * d + t * d + layers * block + 2 * d + v * d);
}

TEST(Gpt, HasAtLeastAMillionParametersByDefault) {
  EXPECT_GE(count_parameters(*make_workload(ModelConfig{}, 0).module), 1'000'000);
}

TEST(Gpt, ListsATiedParameterOnceAndUsesItTwice) {
  auto config = tiny_gpt();
  config.tie = true;
  auto workload = make_workload(config, 0);
  const auto names = names_of(*workload.module);
  EXPECT_EQ(std::set<std::string>(names.begin(), names.end()).count("head.out.weight"), 0U);
  const auto ids = torch::zeros({1, 6}, torch::kInt64);
  const torch::Tensor weight = workload.module->named_parameters()["embed.tok.weight"];
  workload.forward(ids).sum().backward();
  // Only token 0 is looked up, so gradients in the other rows come from the output projection.
  EXPECT_GT(weight.grad().slice(0, 1).abs().max().item<float>(), 0.0F);
  workload.module->to(torch::kFloat64);
  EXPECT_EQ(workload.forward(ids).scalar_type(), torch::kFloat64);
}

TEST(Gpt, LeavesEarlierLogitsAloneWhenALaterTokenChanges) {
  const torch::NoGradGuard no_grad;
  auto workload = make_workload(tiny_gpt(), 3);
  workload.module->to(torch::kFloat64);
  const auto ids = torch::tensor({{1, 2, 3, 4, 5, 6}}, torch::kInt64);
  auto changed = ids.clone();
  changed[0][4] = 9;
  const auto before = workload.forward(ids);
  const auto after = workload.forward(changed);
  EXPECT_TRUE(torch::equal(before.slice(1, 0, 4), after.slice(1, 0, 4)));
  EXPECT_FALSE(torch::equal(before.slice(1, 4), after.slice(1, 4)));
}

TEST(Gpt, KeepsTheRowsOfOneHeadTogetherInQkv) {
  // With the value rows of head 0 at zero, and no bias, the first head contributes nothing: the columns of `proj` that
  // read it may be anything.
  const torch::NoGradGuard no_grad;
  auto workload = make_workload(tiny_gpt(), 3);
  auto parameters = workload.module->named_parameters();
  const std::int64_t head_dim = 4;
  for (const auto* block : {"block0", "block1"}) {
    parameters[fmt::format("{}.qkv.weight", block)].slice(0, 2 * head_dim, 3 * head_dim).zero_();
  }
  const auto ids = torch::tensor({{1, 2, 3, 4, 5, 6}}, torch::kInt64);
  const auto before = workload.forward(ids);
  for (const auto* block : {"block0", "block1"}) {
    parameters[fmt::format("{}.proj.weight", block)].slice(1, 0, head_dim).fill_(100.0);
  }
  EXPECT_TRUE(torch::equal(before, workload.forward(ids)));
}

TEST(Gpt, RefusesASampleLongerThanItsPositions) {
  auto workload = make_workload(tiny_gpt(), 0);
  EXPECT_THROW((void)workload.forward(torch::zeros({1, 7}, torch::kInt64)), ShapeError);
}

TEST(Gpt, RefusesHeadsThatDoNotDivideTheWidth) {
  EXPECT_THROW((void)build_gpt({.hidden = 10, .heads = 4}), ConfigError);
}

TEST(Workload, FillsParametersAsAFunctionOfTheSeedOnly) {
  const auto parameters = [](std::uint64_t seed) { return make_workload(tiny_gpt(), seed).module->parameters(); };
  torch::manual_seed(1);
  const auto first = parameters(7);
  torch::manual_seed(2);
  const auto second = parameters(7);
  const auto other = parameters(8);
  for (std::size_t i = 0; i < first.size(); ++i) EXPECT_TRUE(torch::equal(first[i], second[i]));
  EXPECT_FALSE(torch::equal(first[0], other[0]));
}

TEST(Workload, DrawsEachParameterWithTheSpreadOfItsModel) {
  ModelConfig config;
  config.layers = 2;
  config.hidden = 64;
  const auto gpt = make_workload(config, 0).module->named_parameters();
  // 4096 and more draws: the sample deviation lies within 5 % of the true one, by more than four of its own.
  EXPECT_NEAR(gpt["block0.qkv.weight"].std().item<double>(), 0.02, 0.001);
  EXPECT_NEAR(gpt["block1.down.weight"].std().item<double>(), 0.02 / std::sqrt(4.0), 0.0005);
  EXPECT_TRUE(torch::equal(gpt["block0.ln1.weight"], torch::ones({64})));
  EXPECT_TRUE(torch::equal(gpt["block0.up.bias"], torch::zeros({256})));
  config.name = "mlp";
  const auto mlp = make_workload(config, 0).module->named_parameters();
  EXPECT_NEAR(mlp["layer0.linear.weight"].std().item<double>(), std::sqrt(2.0 / 64.0), 0.01);
}

TEST(Workload, RefusesAnUnknownModelAndNamesTheNearest) {
  ModelConfig config;
  config.name = "gpd";
  EXPECT_NE(message_of<ConfigError>([&] { (void)make_workload(config, 0); }).find("did you mean \"gpt\""),
            std::string::npos);
}

TEST(MeanCrossEntropy, AveragesOverEveryTarget) {
  const auto logits = torch::zeros({2, 3, 5}, torch::kFloat64);
  const auto target = torch::ones({2, 3}, torch::kInt64);
  EXPECT_DOUBLE_EQ(mean_cross_entropy(logits, target).item<double>(), std::log(5.0));
}

}  // namespace
}  // namespace tessera::train
