// SPDX-License-Identifier: Apache-2.0
// Reports: the fields of each JSON line, progress lines and the statistics behind them.
#include "tessera/train/metrics.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tessera/base/error.h"
#include "support/temporary_folder.h"

namespace tessera::train {
namespace {

using test::TemporaryFolder;

using nlohmann::ordered_json;

std::vector<std::string> keys_of(const std::string& line) {
  std::vector<std::string> keys;
  const auto json = ordered_json::parse(line);
  for (const auto& item : json.items()) keys.push_back(item.key());
  return keys;
}

TEST(JsonLine, OfAStepHasItsFieldsInOrder) {
  const StepRecord record{.step = 3, .loss = 1.5, .rate_per_s = 10.0};
  EXPECT_EQ(keys_of(format_json(record, "tokens")),
            (std::vector<std::string>{"step", "loss", "lr", "grad_norm", "step_ms", "tokens_per_s", "comm_bytes",
                                      "comm_ms_exposed", "peak_memory_bytes", "allocated_bytes", "peak_allocated_bytes"}));
  EXPECT_EQ(ordered_json::parse(format_json(record, "samples"))["samples_per_s"], 10.0);
}

TEST(JsonLine, OfAnEvaluationNamesItsMetric) {
  EvalRecord record{.step = 3, .loss = 1.5, .quality = 0.25};
  EXPECT_EQ(format_json(record), R"({"step":3,"eval_loss":1.5,"eval_accuracy":0.25})");
  record.metric = Metric::kPerplexity;
  EXPECT_EQ(keys_of(format_json(record)).back(), "eval_perplexity");
}

TEST(JsonLine, OfTheSummaryHasItsFieldsInOrder) {
  SummaryRecord record;
  record.losses = {2.0, std::numeric_limits<double>::infinity()};
  record.replicated_fallbacks = {{"aten::cumsum", 3}};
  record.gathers = {{"aten::sort", {.times = 2, .bytes = 192}}};
  const auto line = format_json(record);
  EXPECT_EQ(keys_of(line),
            (std::vector<std::string>{"summary", "world", "mesh", "plan", "params", "steps", "ms_median", "ms_p10",
                                      "ms_p90", "throughput", "final_loss", "losses", "peak_rss_bytes", "threads",
                                      "predicted_ms", "predicted_memory_bytes", "replicated_fallbacks",
                                      "gathers"}));
  const auto json = ordered_json::parse(line);
  EXPECT_EQ(json["summary"], true);
  EXPECT_TRUE(json["losses"][1].is_null());
  EXPECT_TRUE(json["predicted_ms"].is_null());
  EXPECT_EQ(json["replicated_fallbacks"]["aten::cumsum"], 3);
  EXPECT_EQ(json["gathers"]["aten::sort"]["times"], 2);
  EXPECT_EQ(json["gathers"]["aten::sort"]["bytes"], 192);
}

TEST(JsonLine, OfAnErrorNestsItsFields) {
  const auto json = ordered_json::parse(format_json(ErrorRecord{"config", 2, "bad \xFF byte\nnext", "train"}));
  EXPECT_EQ(json["error"]["kind"], "config");
  EXPECT_EQ(json["error"]["rank"], 2);
}

TEST(JsonLine, WritesNumbersThatAreNotFiniteAsNull) {
  const StepRecord record{.loss = std::nan(""), .grad_norm = -std::numeric_limits<double>::infinity()};
  const auto json = ordered_json::parse(format_json(record, "tokens"));
  EXPECT_TRUE(json["loss"].is_null());
  EXPECT_TRUE(json["grad_norm"].is_null());
}

TEST(JsonLines, AreInTheFileAsSoonAsTheyAreWritten) {
  const TemporaryFolder folder;
  const auto path = folder.write("lines", "old");
  JsonLines lines(path);
  lines.write("{}");
  lines.write("[1]");
  std::ifstream file(path);
  EXPECT_EQ((std::string{std::istreambuf_iterator<char>(file), {}}), "{}\n[1]\n");
}

TEST(JsonLines, RefusesAFolderAndIgnoresNoDestination) {
  const TemporaryFolder folder;
  EXPECT_THROW(JsonLines(folder.path().string()), ConfigError);
  JsonLines("").write("dropped");
}

TEST(Progress, WritesOneLinePerReportIntervalOffTheTerminal) {
  std::ostringstream out;
  Progress progress(out, {.steps = 10, .report_every = 4, .unit = "tokens"});
  for (std::int64_t step = 1; step <= 10; ++step) progress.step({.step = step, .loss = 2.0, .rate_per_s = 50.0});
  const auto text = out.str();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 3);
  EXPECT_NE(text.find("step 10/10  loss 2.0000"), std::string::npos) << text;
  EXPECT_NE(text.find("50 tokens/s"), std::string::npos) << text;
  EXPECT_EQ(text.find('\r'), std::string::npos);
}

TEST(Progress, DrawsOneLineOnATerminalAndEndsItBeforeAnEvaluation) {
  std::ostringstream out;
  Progress progress(out, {.steps = 4, .terminal = true});
  progress.step({.step = 1});
  progress.step({.step = 4});
  progress.evaluation({.step = 4, .loss = 0.5, .metric = Metric::kAccuracy, .quality = 0.975});
  const auto text = out.str();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\r'), 2);
  EXPECT_NE(text.find("[########################]"), std::string::npos) << text;
  EXPECT_NE(text.find("\nstep 4  held-out loss 0.5000  accuracy 97.50 %\n"), std::string::npos) << text;
}

TEST(Percentile, InterpolatesBetweenNeighbours) {
  EXPECT_EQ(percentile({4, 1, 3, 2}, 0), 1);
  EXPECT_EQ(percentile({4, 1, 3, 2}, 50), 2.5);
  EXPECT_EQ(percentile({4, 1, 3, 2}, 100), 4);
  EXPECT_EQ(percentile({7}, 90), 7);
  EXPECT_TRUE(std::isnan(percentile({}, 50)));
  EXPECT_THROW((void)percentile({1}, 101), ConfigError);
}

TEST(Statistics, CountCorrectPredictionsOfAnyShape) {
  const auto logits = torch::tensor({{{0.0, 1.0}, {2.0, 1.0}}, {{0.0, 3.0}, {0.0, 1.0}}});
  EXPECT_EQ(count_correct(logits, torch::tensor({{1, 0}, {0, 1}}, torch::kInt64)), 3);
}

TEST(Statistics, PerplexityOfAUniformGuessIsTheNumberOfChoices) {
  EXPECT_NEAR(perplexity(std::log(256.0)), 256.0, 1e-9);
}

TEST(Statistics, PeakResidentMemoryCoversWhatWasTouched) {
  const auto touched = torch::ones({1 << 22});
  EXPECT_GT(peak_rss_bytes(), touched.nbytes());
}

}  // namespace
}  // namespace tessera::train
