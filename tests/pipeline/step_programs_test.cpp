// SPDX-License-Identifier: Apache-2.0
// Programs as users write them, in micro-batches by every schedule: writes in place, losses of many terms, metrics, branches,
// layers of every kind, autocast.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <torch/torch.h>

#include <cmath>
#include <functional>
#include <latch>
#include <limits>

#include "pipeline/chain.h"
#include "support/ranks.h"
#include "tessera/base/error.h"
#include "tessera/module/autocast.h"
#include "tessera/module/distribute.h"
#include "tessera/pipeline/step.h"
#include "tessera/tensor/mesh_tensor.h"

namespace tessera {
namespace {

using at::Tensor;
using test::batch;
using test::Case;
using test::Chain;
using test::kWidth;
using test::plan_for;
using test::stages_of;

/// The embedded input changes in place after the last block has read it, and the end reads it again.
Tensor loss_with_late_write(Chain& model, const std::vector<Tensor>& parts) {
  Tensor first = model->embed(parts[0]);
  Tensor hidden = first;
  for (const auto& block : *model->blocks) {
    hidden = torch::tanh(block->as<torch::nn::Linear>()->forward(hidden + first));
  }
  first.mul_(1.25);
  return torch::linear(model->norm(hidden + first), model->embed->weight).pow(2).mean();
}

/// The first stage has the last word.
Tensor loss_with_early_term(Chain& model, const std::vector<Tensor>& parts) {
  const Tensor first = model->embed(parts[0]);
  Tensor hidden = first;
  for (const auto& block : *model->blocks) hidden = torch::tanh(block->as<torch::nn::Linear>()->forward(hidden));
  const Tensor main = model->norm(hidden).pow(2).mean();
  return main + torch::tanh(first * 2).pow(2).mean() * 0.3;
}

void expect_equal_in_every_order(const std::function<Tensor(Chain&, const std::vector<Tensor>&)>& loss_of) {
  for (const pipeline::ScheduleInfo& info : pipeline::schedules()) {
    SCOPED_TRACE(info.name);
    const Case one{info.name, 2, info.default_chunks, 4, ""};
    const auto losses = [&](Chain& model) {
      std::vector<double> seen;
      torch::optim::SGD optimizer(model->parameters(), 0.1);
      for (int i = 0; i < 3; ++i) {
        optimizer.zero_grad();
        const auto loss = [&](const auto& parts) { return loss_of(model, parts); };
        seen.push_back(step(*model, {batch(8, i)}, loss, {.microbatches = 4, .schedule = info.name}).template item<double>());
        optimizer.step();
      }
      return seen;
    };
    Chain alone(2 * one.chunks);
    const std::vector<double> expected = losses(alone);
    test::on_mesh("pp=2", [&](const Mesh& mesh) {
      Chain model(2 * one.chunks);
      distribute(*model, mesh, plan_for(one));
      EXPECT_THAT(losses(model), testing::Pointwise(testing::DoubleNear(1e-13), expected));
    });
  }
}

TEST(StepPrograms, a_write_reaches_the_stages_that_had_a_copy_in_every_order) { expect_equal_in_every_order(loss_with_late_write); }

TEST(StepPrograms, a_term_of_an_early_stage_may_end_the_loss_in_every_order) { expect_equal_in_every_order(loss_with_early_term); }

TEST(StepPrograms, follows_a_branch_on_a_value) {
  const auto squares = [](Chain& model, int steps) {
    std::vector<double> losses;
    for (int i = 0; i < steps; ++i) {
      losses.push_back(step(*model, {batch(8, i)},
                            [&](const auto& parts) {
                              const Tensor output = model->forward(parts[0]);
                              return output.sum().template item<double>() > 0 ? output.pow(2).mean() : output.abs().mean();
                            },
                            {.microbatches = 4})
                           .item<double>());
    }
    return losses;
  };
  Chain alone(2);
  const std::vector<double> expected = squares(alone, 2);
  test::on_mesh("pp=2", [&](const Mesh& mesh) {
    Chain model(2);
    distribute(*model, mesh, Plan().stages(stages_of(2)));
    const std::vector<double> found = squares(model, 2);
    for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(found[i], expected[i], 1e-14);
  });
}

/// What two steps count: elements of the output above zero, added up over micro-batches of unequal size.
std::vector<std::int64_t> counted(Chain& model, const StepOptions& options) {
  std::vector<std::int64_t> counts;
  for (int i = 0; i < 2; ++i) {
    model->zero_grad();
    Tensor count = torch::zeros({}, torch::kLong);
    const auto loss = [&](const std::vector<Tensor>& parts) {
      const Tensor output = model->forward(parts[0]);
      count = count + (output.detach() > 0).sum();
      return output.pow(2).mean();
    };
    (void)step(*model, {batch(11, i)}, loss, options);
    counts.push_back(count.item<std::int64_t>());
  }
  return counts;
}

TEST(StepPrograms, a_metric_that_the_loss_function_adds_up_is_that_of_the_batch) {
  for (const pipeline::ScheduleInfo& info : pipeline::schedules()) {
    SCOPED_TRACE(info.name);
    const Case one{info.name, 2, info.default_chunks, 4, ""};
    Chain alone(2 * one.chunks);
    const std::vector<std::int64_t> expected = counted(alone, {});
    test::on_mesh("pp=2", [&](const Mesh& mesh) {
      Chain model(2 * one.chunks);
      distribute(*model, mesh, plan_for(one));
      EXPECT_EQ(counted(model, {.microbatches = 4, .schedule = info.name}), expected);
    });
  }
}

/// A loss that is NaN, in forward and backward, where no target counts.
Tensor masked_mean(const Tensor& outputs, const Tensor& counted) {
  return (outputs.pow(2).sum(1) * counted).sum() / counted.sum();
}

/// The losses, and after them the gradients, of two steps; micro-batch `without` of four, or every one (4), has no targets.
std::vector<double> with_ignored(Chain& model, const std::string& axes, const StepOptions& from, int without) {
  StepOptions options = from;
  options.weight = [](const std::vector<Tensor>& parts) { return parts[1].sum().item<double>(); };
  Tensor counted = torch::ones({8}, torch::kDouble);
  without == 4 ? counted.zero_() : counted.narrow(0, 2 * without, 2).zero_();
  std::vector<double> seen;
  for (int i = 0; i < 2; ++i) {
    SCOPED_TRACE(axes);
    model->zero_grad();
    const auto loss = [&](const std::vector<Tensor>& parts) { return masked_mean(model->forward(parts[0]), parts[1]); };
    seen.push_back(step(*model, {batch(8, i), counted}, loss, options).item<double>());
    for (const Tensor& parameter : model->parameters()) seen.push_back(full(parameter.grad()).sum().item<double>());
  }
  return seen;
}

TEST(StepPrograms, a_micro_batch_of_weight_0_is_left_out_though_its_loss_is_nan) {
  for (const pipeline::ScheduleInfo& info : pipeline::schedules()) {
    const Case one{info.name, 2, info.default_chunks, 4, ""};
    for (const int without : {0, 1, 3}) {
      SCOPED_TRACE(info.name + ", without " + std::to_string(without));
      const StepOptions options{.microbatches = 4, .schedule = info.name};
      Chain alone(2 * one.chunks);
      const std::vector<double> expected = with_ignored(alone, "one device", {}, without);
      EXPECT_THAT(with_ignored(alone, "one device", options, without), testing::Pointwise(testing::DoubleNear(1e-12), expected));
      for (const std::string axes : {"pp=2", "pp=2,dp=2", "dp=2", "tp=2", "pp=2,tp=2"}) {
        test::on_mesh(axes, [&](const Mesh& mesh) {
          Chain model(2 * one.chunks);
          distribute(*model, mesh, plan_for(one));
          EXPECT_THAT(with_ignored(model, axes, options, without), testing::Pointwise(testing::DoubleNear(1e-12), expected));
        });
      }
    }
  }
}

TEST(StepPrograms, of_weights_that_are_all_0_the_mean_is_what_the_loss_makes_of_it) {
  const StepOptions options{.microbatches = 4};
  for (const std::string axes : {"pp=2", "dp=2"}) {
    test::on_mesh(axes, [&](const Mesh& mesh) {
      Chain model(2);
      distribute(*model, mesh, plan_for({"1f1b", 2, 1, 4, ""}));
      EXPECT_THAT(with_ignored(model, axes, options, 4), testing::Each(testing::IsNan()));
      const auto clamped = [&](const std::vector<Tensor>& parts) {
        return (model->forward(parts[0]).sum(1) * parts[1]).sum() / parts[1].sum().clamp_min(1);
      };
      StepOptions weighted = options;
      weighted.weight = [](const std::vector<Tensor>& parts) { return parts[1].sum().item<double>(); };
      model->zero_grad();
      const Tensor nothing = torch::zeros({8}, torch::kDouble);
      EXPECT_EQ(step(*model, {batch(8, 0), nothing}, clamped, weighted).item<double>(), 0);
      for (const Tensor& parameter : model->parameters()) EXPECT_EQ(full(parameter.grad()).abs().max().item<double>(), 0);
    });
  }
}

TEST(StepPrograms, a_nan_where_something_counts_is_seen) {
  Chain model(1);
  Tensor x = batch(8, 0);
  x[7][0] = std::numeric_limits<double>::quiet_NaN();
  const auto weight = [](const std::vector<Tensor>& parts) { return parts[1].sum().item<double>(); };
  const auto loss = [&](const std::vector<Tensor>& parts) { return masked_mean(model->forward(parts[0]), parts[1]); };
  const Tensor counted = torch::ones({8}, torch::kDouble);
  EXPECT_TRUE(std::isnan(step(*model, {x, counted}, loss, {.microbatches = 4, .weight = weight}).item<double>()));
}

TEST(StepPrograms, refuses_weights_below_0) {
  Chain model(1);
  const auto loss = [&](const std::vector<Tensor>& parts) { return model->forward(parts[0]).mean(); };
  const auto weight = [](const std::vector<Tensor>&) { return -1.0; };
  EXPECT_THROW((void)step(*model, {batch(8, 0)}, loss, {.microbatches = 4, .weight = weight}), ConfigError);
}

/// Lets others go on at the end of a scope, even one that an exception ends.
class Release {
 public:
  explicit Release(std::latch* latch) : latch_(latch) {}
  ~Release() {
    if (latch_ != nullptr) latch_->count_down();
  }
  Release(const Release&) = delete;
  Release& operator=(const Release&) = delete;

 private:
  std::latch* latch_;
};

TEST(StepPrograms, one_rank_may_read_the_loss_while_others_do_not) {
  for (const pipeline::ScheduleInfo& info : pipeline::schedules()) {
    const Case one{info.name, 2, info.default_chunks, 4, ""};
    const StepOptions options{.microbatches = 4, .schedule = info.name};
    Chain alone(2 * one.chunks);
    const auto loss_of = [&](Chain& model, int i) {
      model->zero_grad();
      const auto loss = [&](const std::vector<Tensor>& parts) { return model->forward(parts[0]).pow(2).mean(); };
      return step(*model, {batch(8, i)}, loss, options);
    };
    for (const std::string axes : {"pp=2", "dp=2", "tp=2", "dp=2,tp=2", "pp=2,dp=2"}) {
      SCOPED_TRACE(info.name + " " + axes);
      std::latch has_read(1);
      test::on_mesh(axes, [&](const Mesh& mesh) {
        const Release release(mesh.rank() == 0 ? &has_read : nullptr);
        Chain model(2 * one.chunks);
        distribute(*model, mesh, plan_for(one));
        for (int i = 0; i < 2; ++i) {
          const Tensor loss = loss_of(model, i);
          if (mesh.rank() != 0) continue;
          EXPECT_NEAR(loss.item<double>(), loss_of(alone, i).item<double>(), 1e-13);
        }
        if (mesh.rank() != 0) has_read.wait();
      });
    }
  }
}

/// Layers that are unlike each other: an embedding, a recurrent net, batch norm, a convolution, attention.
struct MixtureImpl : torch::nn::Module {
  MixtureImpl()
      : embed(register_module("embed", torch::nn::Embedding(torch::nn::EmbeddingOptions(11, kWidth).padding_idx(0)))),
        lstm(register_module("lstm", torch::nn::LSTM(torch::nn::LSTMOptions(kWidth, kWidth).batch_first(true)))),
        norm(register_module("norm", torch::nn::BatchNorm1d(kWidth))),
        conv(register_module("conv", torch::nn::Conv1d(torch::nn::Conv1dOptions(kWidth, kWidth, 3).padding(1)))),
        attention(register_module("attention", torch::nn::MultiheadAttention(kWidth, 2))),
        head(register_module("head", torch::nn::Linear(kWidth, 5))) {
    to(torch::kDouble);
    const torch::NoGradGuard no_grad;
    double phase = 0;
    for (Tensor& parameter : parameters()) {
      parameter.copy_((torch::arange(parameter.numel(), torch::kDouble) * 0.7 + ++phase).sin().view(parameter.sizes()) * 0.4);
    }
  }
  Tensor forward(const Tensor& ids) {
    const Tensor recurrent = std::get<0>(lstm(embed(ids)));
    Tensor normed = norm(recurrent.transpose(1, 2));
    const Tensor planes = conv(normed.relu_());
    const Tensor tokens = planes.permute({2, 0, 1});
    return head((std::get<0>(attention(tokens, tokens, tokens)) + tokens).transpose(0, 1)).transpose(1, 2);
  }
  torch::nn::Embedding embed;
  torch::nn::LSTM lstm;
  torch::nn::BatchNorm1d norm;
  torch::nn::Conv1d conv;
  torch::nn::MultiheadAttention attention;
  torch::nn::Linear head;
};
TORCH_MODULE(Mixture);

TEST(StepPrograms, layers_of_every_kind_train_in_every_order) {
  const auto trained = [](Mixture& model, const StepOptions& options) {
    torch::optim::Adam optimizer(model->parameters(), torch::optim::AdamOptions(0.01));
    std::vector<double> losses;
    for (int i = 0; i < 3; ++i) {
      optimizer.zero_grad();
      const Tensor ids = (torch::arange(10 * 7) * (i + 3)).remainder(11).view({10, 7});
      const auto loss = [](const Tensor& logits, const Tensor& target) { return torch::cross_entropy_loss(logits, target); };
      losses.push_back(step(*model, ids, ids.remainder(5), loss, options).template item<double>());
      optimizer.step();
    }
    const Tensor mean = full(model->norm->running_mean);
    losses.insert(losses.end(), mean.data_ptr<double>(), mean.data_ptr<double>() + mean.numel());
    return losses;
  };
  for (const pipeline::ScheduleInfo& info : pipeline::schedules()) {
    SCOPED_TRACE(info.name);
    const StepOptions options{.microbatches = 4, .schedule = info.name};
    Mixture alone;
    const std::vector<double> expected = trained(alone, options);
    std::vector<std::vector<std::string>> stages{{"embed", "lstm", "norm", "conv"}, {"attention", "head"}};
    if (info.default_chunks == 2) stages = {{"embed", "lstm"}, {"norm", "conv"}, {"attention"}, {"head"}};
    const StageOrder order = test::order_of({info.name, 2, info.default_chunks, 4, ""});
    for (const std::string axes : {"pp=2", "pp=2,dp=2"}) {
      SCOPED_TRACE(axes);
      test::on_mesh(axes, [&](const Mesh& mesh) {
        Mixture model;
        distribute(*model, mesh, Plan().stages(stages, order));
        EXPECT_THAT(trained(model, options), testing::Pointwise(testing::DoubleNear(1e-11), expected));
      });
    }
  }
}

TEST(StepPrograms, autocast_around_the_step_holds_in_every_order) {
  const auto losses = [](Chain& model, const StepOptions& options) {
    std::vector<double> seen;
    const Autocast autocast(at::kCPU, at::kHalf);
    for (int i = 0; i < 3; ++i) {
      model->zero_grad();
      const Tensor x = batch(8, i).to(at::kFloat);
      const auto loss = [&](const std::vector<Tensor>& parts) {
        const Tensor output = model->blocks[1]->as<torch::nn::Linear>()->forward(model->embed(parts[0]));
        EXPECT_EQ(output.scalar_type(), at::kHalf);
        return model->forward(parts[0]).pow(2).mean();
      };
      seen.push_back(step(*model, {x}, loss, options).template item<double>());
    }
    return seen;
  };
  for (const pipeline::ScheduleInfo& info : pipeline::schedules()) {
    SCOPED_TRACE(info.name);
    const Case one{info.name, 2, info.default_chunks, 4, ""};
    const StepOptions options{.microbatches = 4, .schedule = info.name};
    Chain alone(2 * one.chunks);
    alone->to(at::kFloat);
    const std::vector<double> expected = losses(alone, options);
    test::on_mesh("pp=2", [&](const Mesh& mesh) {
      Chain model(2 * one.chunks);
      model->to(at::kFloat);
      distribute(*model, mesh, plan_for(one));
      EXPECT_THAT(losses(model, options), testing::Pointwise(testing::DoubleNear(1e-3), expected));
    });
  }
}

}  // namespace
}  // namespace tessera
