// SPDX-License-Identifier: Apache-2.0
// A module that was never touched for it, trained in micro-batches by every schedule, equals one device.
#include "tessera/pipeline/step.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <torch/torch.h>

#include <mutex>

#include "pipeline/chain.h"
#include "support/ranks.h"
#include "tessera/base/error.h"
#include "tessera/module/distribute.h"
#include "tessera/tensor/mesh_tensor.h"
#include "tessera/tensor/random.h"
#include "tessera/tensor/stages.h"

namespace tessera {
namespace {

using at::Tensor;
using test::batch;
using test::Case;
using test::Chain;
using test::kWidth;
using test::plan_for;
using test::stages_of;

Tensor squared_error(const Tensor& output, const Tensor& target) { return torch::mse_loss(output, target); }

struct Training {
  std::vector<double> losses;
  std::vector<Tensor> parameters;
};

Training train(Chain& model, int samples, const StepOptions& options, int steps = 3) {
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
  Training run;
  for (int index = 0; index < steps; ++index) {
    optimizer.zero_grad();
    const Tensor x = batch(samples, index);
    run.losses.push_back(step(*model, x, x.flip(0), squared_error, options).item<double>());
    optimizer.step();
  }
  for (const Tensor& parameter : model->parameters()) run.parameters.push_back(full(parameter.detach()).clone());
  return run;
}

void expect_equal(const Training& found, const Training& expected, double tolerance) {
  for (std::size_t i = 0; i < expected.losses.size(); ++i) EXPECT_NEAR(found.losses[i], expected.losses[i], tolerance);
  for (std::size_t i = 0; i < expected.parameters.size(); ++i) {
    EXPECT_LE((found.parameters[i] - expected.parameters[i]).abs().max().item<double>(), tolerance) << i;
  }
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const pipeline::ScheduleInfo& info : pipeline::schedules()) {
    for (const int ranks : {2, 3, 4}) {
      for (const int microbatches : {1, 4, 8}) {
        if (microbatches > 1 && microbatches < info.min_microbatches_per_rank * ranks) continue;
        all.push_back({info.name, ranks, info.default_chunks, microbatches, ""});
      }
    }
    all.push_back({info.name, 2, info.default_chunks, 4, ",dp=2"});
    all.push_back({info.name, 2, info.default_chunks, 4, ",tp=2"});
  }
  all.push_back({"interleaved", 2, 3, 6, ""});
  all.push_back({"interleaved", 3, 2, 5, ""});
  all.push_back({"interleaved", 2, 2, 4, ",dp_shard=2"});
  return all;
}

class EverySchedule : public testing::TestWithParam<Case> {};

TEST_P(EverySchedule, trains_as_one_device) {
  const Case& one = GetParam();
  const StepOptions options{.microbatches = one.microbatches, .schedule = one.schedule};
  // The last micro-batches are smaller.
  const int samples = 3 * one.microbatches + (one.microbatches > 1 ? 2 : 1);
  Chain alone(one.ranks * one.chunks);
  const Training expected = train(alone, samples, options);
  test::on_mesh("pp=" + std::to_string(one.ranks) + one.more_axes, [&](const Mesh& mesh) {
    Chain model(one.ranks * one.chunks);
    distribute(*model, mesh, plan_for(one));
    expect_equal(train(model, samples, options), expected, 1e-13);
  });
}

std::string name_of(const testing::TestParamInfo<Case>& one) {
  std::string name = one.param.schedule + "_pp" + std::to_string(one.param.ranks) + one.param.more_axes + "_v" +
                     std::to_string(one.param.chunks) + "_m" + std::to_string(one.param.microbatches);
  for (char& letter : name) letter = std::isalnum(static_cast<unsigned char>(letter)) != 0 ? letter : '_';
  return name;
}

INSTANTIATE_TEST_SUITE_P(, EverySchedule, testing::ValuesIn(cases()), name_of);

Training train_on(const std::string& schedule, int ranks, int chunks, int microbatches) {
  const Case one{schedule, ranks, chunks, microbatches, ""};
  Training run;
  test::on_mesh("pp=" + std::to_string(ranks), [&](const Mesh& mesh) {
    Chain model(ranks * chunks);
    distribute(*model, mesh, plan_for(one));
    Training mine = train(model, 2 * microbatches, {.microbatches = microbatches, .schedule = schedule});
    if (mesh.rank() == 0) run = std::move(mine);
  });
  return run;
}

TEST(Step, gives_the_same_bits_in_every_order_of_the_same_stages) {
  const Training first = train_on("gpipe", 2, 1, 6);
  for (const std::string schedule : {"1f1b", "zb-h1", "zb-h2"}) expect_equal(train_on(schedule, 2, 1, 6), first, 0);
  const Training v_shaped = train_on("zbv", 2, 2, 6);
  expect_equal(train_on("dualpipev", 2, 2, 6), v_shaped, 0);
  expect_equal(train_on("interleaved", 2, 2, 6), v_shaped, 0);
}

/// Two steps of `loss` on pp=2, `num_blocks` blocks; the message of the first error.
std::string refusal(int num_blocks, const Plan& plan, const std::function<Tensor(Chain&, const Tensor&)>& loss,
                    const StepOptions& options) {
  std::string message;
  std::mutex mutex;
  test::on_mesh("pp=2", [&](const Mesh& mesh) {
    Chain mine(num_blocks);
    distribute(*mine, mesh, plan);
    try {
      for (int i = 0; i < 2; ++i) {
        mine->zero_grad();
        (void)step(*mine, {batch(8, 0) + 3 * i}, [&](const auto& parts) { return loss(mine, parts[0]); }, options);
      }
    } catch (const Error& error) {
      const std::lock_guard lock(mutex);
      if (message.empty()) message = error.what();
    }
  });
  return message;
}

/// The same with the stages of a schedule.
std::string refusal_of(const std::function<Tensor(Chain&, const Tensor&)>& loss, const Case& one) {
  return refusal(one.ranks * one.chunks, plan_for(one), loss, {.microbatches = one.microbatches, .schedule = one.schedule});
}

Tensor mean_of(Chain& model, const Tensor& x) { return model->forward(x).mean(); }

TEST(Step, refuses_more_micro_batches_than_samples) {
  EXPECT_THAT(refusal(2, Plan().stages(stages_of(2)), mean_of, {.microbatches = 9}),
              testing::HasSubstr("microbatches = 9 for a batch of 8 samples; allowed: 1 to 8"));
}

TEST(Step, refuses_a_schedule_that_does_not_fit_where_stages_lie) {
  EXPECT_THAT(refusal(2, Plan().stages(stages_of(2)), mean_of, {.microbatches = 4, .schedule = "zbv"}),
              testing::AllOf(testing::HasSubstr("zbv"), testing::HasSubstr("1 chunk")));
}

TEST(Step, refuses_a_forward_that_comes_back_to_an_earlier_stage) {
  const Plan plan = Plan().stages({{"blocks.1", "norm"}, {"embed", "blocks.0"}});
  EXPECT_THAT(refusal(2, plan, mean_of, {.microbatches = 4}),
              testing::HasSubstr("forward comes back to an earlier pipeline stage"));
}

TEST(Step, refuses_a_tied_weight_that_only_the_first_stage_has) {
  EXPECT_THAT(refusal(2, Plan().stages({{"embed", "blocks.0"}, {"blocks.1", "norm"}}), mean_of, {.microbatches = 4}),
              testing::HasSubstr("forward comes back to an earlier pipeline stage"));
}

TEST(Step, refuses_to_write_what_an_earlier_stage_has_with_what_a_later_one_made) {
  const auto loss = [](Chain& model, const Tensor& x) {
    Tensor first = model->embed(x);
    first.add_(model->blocks[1]->as<torch::nn::Linear>()->forward(first * 2));
    return model->norm(first * 2).mean();
  };
  EXPECT_THAT(refusal_of(loss, {"1f1b", 2, 1, 4, ""}), testing::HasSubstr("earlier pipeline stage at aten::add_"));
}

/// On rank 0 lie stages 0 and 3, and what it makes for stage 2 it makes after stage 3, which comes after stage 2.
TEST(Step, refuses_a_stage_that_waits_for_what_a_later_one_sends) {
  const auto loss = [](Chain& model, const Tensor& x) {
    const Tensor first = model->embed(x);
    Tensor hidden = first;
    for (const auto& block : *model->blocks) hidden = torch::tanh(block->as<torch::nn::Linear>()->forward(hidden));
    return (model->norm(hidden) + model->blocks[2]->as<torch::nn::Linear>()->forward(first * 2)).mean();
  };
  EXPECT_THAT(refusal_of(loss, {"zbv", 2, 2, 4, ""}), testing::HasSubstr("earlier pipeline stage at aten::addmm"));
}

TEST(Step, a_loss_that_fails_on_one_rank_ends_the_step_of_all) {
  for (const pipeline::ScheduleInfo& info : pipeline::schedules()) {
    SCOPED_TRACE(info.name);
    const Case one{info.name, 2, info.default_chunks, 4, ""};
    std::mutex mutex;
    std::vector<std::string> messages;
    test::on_ranks(2, [&](const auto& world) {
      try {
        const Mesh mesh(world, parse_axes("pp=2"));
        Chain model(2 * one.chunks);
        distribute(*model, mesh, plan_for(one));
        for (int i = 0; i < 3; ++i) {
          int calls = 0;
          const auto loss = [&](const std::vector<Tensor>& parts) {
            const Tensor output = model->forward(parts[0]);
            if (i == 2 && ++calls == 3 && mesh.rank() == 1) throw std::runtime_error("no more");
            return output.pow(2).mean();
          };
          (void)step(*model, {batch(8, i)}, loss, {.microbatches = 4, .schedule = info.name});
        }
      } catch (const std::exception& error) {
        world->abort(error.what());
        const std::lock_guard lock(mutex);
        messages.emplace_back(error.what());
      }
    });
    EXPECT_THAT(messages, testing::ElementsAre(testing::HasSubstr("no more"), testing::HasSubstr("no more")));
  }
}

Tensor gradients_of(Chain& model) {
  std::vector<Tensor> all;
  for (const Tensor& parameter : model->parameters()) {
    if (parameter.grad().defined()) all.push_back(full(parameter.grad()).flatten());
  }
  return torch::cat(all).clone();
}

/// Gradients of the last of four steps; the third fails at the loss of micro-batch `fails_at` (-1: it does not), and so
/// does whoever waits for a rank that failed.
Tensor gradients_after_failure(Chain& model, const StepOptions& options, int fails_at) {
  for (int i = 0; i < 4; ++i) {
    model->zero_grad();
    int calls = 0;
    const auto loss = [&](const std::vector<Tensor>& parts) {
      const Tensor output = model->forward(parts[0]);
      if (i == 2 && calls++ == fails_at) throw std::runtime_error("no more");
      return output.pow(2).mean();
    };
    try {
      (void)step(*model, {batch(8, i)}, loss, options);
    } catch (const std::runtime_error& error) {
      EXPECT_EQ(i, 2);
      EXPECT_THAT(std::string(error.what()), testing::AnyOf("no more", testing::HasSubstr("ended its step early")));
    }
  }
  return gradients_of(model);
}

TEST(Step, messages_of_a_step_that_failed_are_not_taken_by_later_steps) {
  for (const pipeline::ScheduleInfo& info : pipeline::schedules()) {
    const Case one{info.name, 2, info.default_chunks, 4, ""};
    const StepOptions options{.microbatches = 4, .schedule = info.name};
    Chain alone(2 * one.chunks);
    const Tensor expected = gradients_after_failure(alone, options, -1);
    for (const int fails_at : {0, 1, 3}) {
      SCOPED_TRACE(info.name + ", micro-batch " + std::to_string(fails_at));
      test::on_mesh("pp=2", [&](const Mesh& mesh) {
        Chain model(2 * one.chunks);
        distribute(*model, mesh, plan_for(one));
        const Tensor found = gradients_after_failure(model, options, fails_at);
        EXPECT_LE((found - expected).abs().max().item<double>(), 1e-13);
      });
    }
  }
}

TEST(Step, messages_of_a_step_that_failed_on_one_rank_are_not_taken_by_later_steps) {
  for (const pipeline::ScheduleInfo& info : pipeline::schedules()) {
    const Case one{info.name, 2, info.default_chunks, 4, ""};
    const StepOptions options{.microbatches = 4, .schedule = info.name};
    Chain alone(2 * one.chunks);
    const Tensor expected = gradients_after_failure(alone, options, -1);
    for (const int failing : {0, 1}) {
      SCOPED_TRACE(info.name + ", rank " + std::to_string(failing));
      test::on_mesh("pp=2", [&](const Mesh& mesh) {
        Chain model(2 * one.chunks);
        distribute(*model, mesh, plan_for(one));
        const Tensor found = gradients_after_failure(model, options, mesh.rank() == failing ? 1 : -1);
        EXPECT_LE((found - expected).abs().max().item<double>(), 1e-13);
      });
    }
  }
}

TEST(Step, an_operator_that_fails_where_it_computes_fails_on_all_ranks) {
  const Case one{"1f1b", 2, 1, 4, ""};
  const StepOptions options{.microbatches = 4, .schedule = one.schedule};
  Chain alone(2);
  const Training expected = train(alone, 8, options);
  test::on_mesh("pp=2", [&](const Mesh& mesh) {
    Chain model(2);
    distribute(*model, mesh, plan_for(one));
    const auto loss = [&](const std::vector<Tensor>& parts) { return model->forward(parts[0]).sum(); };
    for (int i = 0; i < 2; ++i) {
      const Tensor too_wide = torch::ones({8, kWidth + 3}, torch::kDouble);
      EXPECT_THROW((void)step(*model, {too_wide}, loss, options), c10::Error);
    }
    expect_equal(train(model, 8, options), expected, 1e-13);
  });
}

TEST(Step, without_grad_mode_runs_forward_only) {
  Chain alone(4);
  const torch::NoGradGuard no_grad;
  const Tensor x = batch(7, 0);
  const StepOptions options{.microbatches = 3, .schedule = "interleaved"};
  const double expected = step(*alone, x, x, squared_error).item<double>();
  test::on_mesh("pp=2", [&](const Mesh& mesh) {
    const torch::NoGradGuard in_this_thread;
    Chain model(4);
    distribute(*model, mesh, plan_for({"interleaved", 2, 2, 3, ""}));
    for (int i = 0; i < 3; ++i) EXPECT_NEAR(step(*model, x, x, squared_error, options).item<double>(), expected, 1e-14);
    for (const Tensor& parameter : model->parameters()) EXPECT_FALSE(parameter.grad().defined());
  });
}

TEST(Step, weighs_micro_batches_as_told_and_adds_up_sums) {
  const auto masked_mean = [](const std::vector<Tensor>& parts) {
    return (parts[0] * parts[1]).sum() / parts[1].sum().clamp_min(1);
  };
  torch::nn::Linear none(1, 1);
  const Tensor x = torch::arange(6, torch::kDouble).view({6, 1}).requires_grad_();
  const Tensor mask = torch::tensor({1.0, 0.0, 0.0, 1.0, 1.0, 1.0}, torch::kDouble).view({6, 1});
  const auto counted = [](const std::vector<Tensor>& parts) { return parts[1].sum().item<double>(); };
  EXPECT_DOUBLE_EQ(step(*none, {x, mask}, masked_mean, {.microbatches = 3, .weight = counted}).item<double>(), 12.0 / 4);
  const auto sum = [](const std::vector<Tensor>& parts) { return parts[0].sum(); };
  EXPECT_DOUBLE_EQ(step(*none, {x}, sum, {.microbatches = 3, .reduction = LossReduction::kSum}).item<double>(), 15);
}

TEST(Step, leaves_a_trace_of_every_rank) {
  test::on_mesh("pp=2", [&](const Mesh& mesh) {
    Chain model(2);
    distribute(*model, mesh, Plan().stages(stages_of(2)));
    std::vector<pipeline::TracedAction> mine;
    const Tensor x = batch(8, 0);
    for (int i = 0; i < 2; ++i) {
      model->zero_grad();
      (void)step(*model, x, x, squared_error, {.microbatches = 4, .trace = &mine});
    }
    const auto rows = pipeline::gather_trace(mesh, mine);
    const pipeline::Schedule schedule = pipeline::make_schedule("1f1b", {.ranks = 2, .microbatches = 4});
    ASSERT_EQ(rows.size(), 2U);
    for (std::size_t rank = 0; rank < 2; ++rank) {
      ASSERT_EQ(rows[rank].size(), schedule.actions[rank].size());
      for (std::size_t i = 0; i < rows[rank].size(); ++i) {
        EXPECT_EQ(rows[rank][i].action, schedule.actions[rank][i]);
        EXPECT_LE(rows[rank][i].start_ms, rows[rank][i].end_ms);
      }
    }
    EXPECT_THAT(pipeline::chrome_trace(rows), testing::HasSubstr("\"name\":\"1B3\""));
  });
}

}  // namespace
}  // namespace tessera
