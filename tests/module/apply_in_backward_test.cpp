// SPDX-License-Identifier: Apache-2.0
// Updates during backward against a step after it.
#include "tessera/module/apply_in_backward.h"

#include <gtest/gtest.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <functional>

#include "module/models.h"
#include "tessera/base/error.h"
#include "tessera/module/fused_optimizers.h"

namespace tessera {
namespace {

using at::Tensor;

using test::kRounding;
using test::kSteps;

std::vector<test::Layout> layouts_and_zero_stages() {
  std::vector<test::Layout> all = test::layouts();
  const Plan tensor_parallel = Plan().add("first.*", {{"tp", Shard(0)}}).add("second.weight", {{"tp", Shard(1)}});
  for (const int zero : {1, 2, 3}) {
    for (const char* axes : {"dp_shard=2", "dp_shard=3", "dp_replicate=2,dp_shard=2", "dp_shard=2,tp=2"}) {
      all.push_back({"zero " + std::to_string(zero) + " on " + axes, axes, Plan(tensor_parallel).zero(zero)});
    }
  }
  for (const int zero : {0, 3}) {
    Plan plan = Plan().stages({{"first"}, {"second"}}).zero(zero);
    all.push_back({"two stages, zero " + std::to_string(zero), "pp=2,dp_shard=2", std::move(plan)});
  }
  return all;
}

/// `first` happens to the module before it is trained.
template <class Optimizer, class Options>
void expect_equal_everywhere(const Options& options,
                             const std::function<void(const Mesh&, test::Net&)>& first = [](const Mesh&, test::Net&) {}) {
  const std::vector<Tensor> expected = test::train_alone<Optimizer>(options);
  for (const test::Layout& layout : layouts_and_zero_stages()) {
    for (const std::int64_t bucket_bytes : {std::int64_t{1}, std::int64_t{1} << 20}) {
      SCOPED_TRACE(layout.name + ", buckets of " + std::to_string(bucket_bytes) + " bytes");
      test::on_mesh(layout.axes, [&](const Mesh& mesh) {
        test::Net net = test::make_net();
        distribute(*net, mesh, layout.plan, {.bucket_bytes = bucket_bytes, .first_bucket_bytes = bucket_bytes});
        const ApplyInBackward updates = apply_in_backward<Optimizer>(net->parameters(), options);
        first(mesh, net);
        for (int index = 0; index < kSteps; ++index) test::backward(mesh, net, index);
        for (std::size_t i = 0; i < expected.size(); ++i) {
          EXPECT_FALSE(net->parameters()[i].grad().defined()) << i;
          EXPECT_LE(test::difference(net->parameters()[i], expected[i]), kRounding) << i;
        }
        EXPECT_TRUE(replicated_fallbacks(mesh).empty());
      });
    }
  }
}

TEST(ApplyInBackward, trains_as_a_step_after_backward_on_every_layout) {
  expect_equal_everywhere<FusedAdamW>(torch::optim::AdamWOptions(1e-2));
  expect_equal_everywhere<FusedSgd>(torch::optim::SGDOptions(0.1).momentum(0.9));
  expect_equal_everywhere<torch::optim::Adam>(torch::optim::AdamOptions(1e-2));
}

TEST(ApplyInBackward, trains_plain_parameters_too) {
  const torch::optim::AdamWOptions options(1e-2);
  const std::vector<Tensor> expected = test::train_alone<torch::optim::AdamW>(options);
  test::Net net = test::make_net();
  const ApplyInBackward updates = apply_in_backward<torch::optim::AdamW>(net->parameters(), options);
  for (int index = 0; index < kSteps; ++index) test::backward(net, test::inputs(index), test::targets());
  for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(at::equal(net->parameters()[i], expected[i])) << i;
}

/// Counts the gradients that are there when a parameter is updated.
class Counting : public FusedSgd {
 public:
  Counting(std::vector<Tensor> parameter, std::vector<Tensor> all, std::size_t& most)
      : FusedSgd(std::move(parameter), torch::optim::SGDOptions(0.1)), all_(std::move(all)), most_(most) {}
  Tensor step(LossClosure closure) override {
    const auto there = static_cast<std::size_t>(
        std::count_if(all_.begin(), all_.end(), [](const Tensor& parameter) { return parameter.grad().defined(); }));
    most_ = std::max(most_, there);
    return FusedSgd::step(closure);
  }

 private:
  std::vector<Tensor> all_;
  std::size_t& most_;
};

std::size_t most_gradients(const std::string& axes, int zero, std::int64_t bucket_bytes) {
  std::size_t result = 0;
  test::on_mesh(axes, [&](const Mesh& mesh) {
    test::Net net = test::make_net();
    distribute(*net, mesh, Plan().zero(zero), {.bucket_bytes = bucket_bytes, .first_bucket_bytes = bucket_bytes});
    std::size_t most = 0;
    const ApplyInBackward updates(net->parameters(), [&](std::vector<Tensor> parameter) {
      return std::make_unique<Counting>(std::move(parameter), net->parameters(), most);
    });
    test::backward(mesh, net);
    if (mesh.rank() == 0) result = most;
  });
  return result;
}

TEST(ApplyInBackward, holds_one_gradient_at_a_time_under_zero_3) {
  EXPECT_EQ(most_gradients("dp_shard=2", 3, 1), 1U);
  EXPECT_EQ(most_gradients("dp_shard=2", 3, 1 << 20), 4U) << "all of them fit into what may be under way";
}

TEST(ApplyInBackward, holds_two_buckets_of_replicated_gradients) { EXPECT_EQ(most_gradients("dp=2", 0, 1), 2U); }

TEST(ApplyInBackward, waits_for_the_last_of_several_micro_batches) {
  const torch::optim::SGDOptions options(0.1);
  test::Net alone = test::make_net();
  torch::optim::SGD expected(alone->parameters(), options);
  for (int index = 0; index < 3; ++index) test::backward(alone, test::inputs(index), test::targets());
  expected.step();
  for (const int zero : {0, 3}) {
    test::on_mesh("dp_shard=2", [&](const Mesh& mesh) {
      test::Net net = test::make_net();
      distribute(*net, mesh, Plan().zero(zero));
      const ApplyInBackward updates = apply_in_backward<FusedSgd>(net->parameters(), options);
      {
        const NoSync no_sync(*net);
        for (int index = 0; index < 2; ++index) test::backward(mesh, net, index);
        EXPECT_LE(test::difference(net->first->weight, test::make_net()->first->weight), 0) << "updated too early";
      }
      test::backward(mesh, net, 2);
      for (std::size_t i = 0; i < 4; ++i) {
        EXPECT_LE(test::difference(net->parameters()[i], alone->parameters()[i]), kRounding) << i;
      }
    });
  }
}

TEST(ApplyInBackward, updates_a_tied_parameter_once) {
  const auto forward = [](const Tensor& weight, const Tensor& x) { return torch::tanh(x.mm(weight)).mm(weight.t()); };
  const Tensor start = (torch::arange(10 * 6, torch::kDouble) * 0.17).sin().view({10, 6});
  const auto loss = [&](const Tensor& y) { return y.pow(2).mean(); };
  Tensor alone = start.clone().requires_grad_();
  loss(forward(alone, test::inputs())).backward();
  const Tensor expected = alone.detach() - 0.1 * alone.grad();
  test::on_mesh("dp_shard=2", [&](const Mesh& mesh) {
    torch::nn::Module module;
    const Tensor weight = module.register_parameter("in", start.clone());
    module.register_parameter("out", weight);
    distribute(module, mesh, Plan().zero(3));
    const ApplyInBackward updates = apply_in_backward<FusedSgd>(module.parameters(), torch::optim::SGDOptions(0.1));
    EXPECT_EQ(updates.optimizers().size(), 1U);
    loss(forward(weight, shard_batch(mesh, test::inputs()))).backward();
    EXPECT_LE(test::difference(weight, expected), kRounding);
  });
}

TEST(ApplyInBackward, ends_with_its_scope_and_outlives_distribute) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    test::Net net = test::make_net();
    {
      const ApplyInBackward updates = apply_in_backward<FusedSgd>(net->parameters(), torch::optim::SGDOptions(0.1));
      distribute(*net, mesh, Plan());
      test::backward(mesh, net);
      EXPECT_FALSE(net->first->weight.grad().defined());
      EXPECT_GT(test::difference(net->first->weight, test::make_net()->first->weight), 1e-5);
    }
    const Tensor before = full(net->first->weight).clone();
    test::backward(mesh, net);
    EXPECT_TRUE(net->first->weight.grad().defined());
    EXPECT_EQ(test::difference(net->first->weight, before), 0);
  });
}

/// Backward throws once the gradients of the second layer are there.
void backward_that_throws(test::Net& net, const Tensor& input) {
  const Tensor hidden = torch::tanh(net->first(input));
  hidden.register_hook([](const Tensor&) -> Tensor { throw std::runtime_error("stop"); });
  EXPECT_THROW(net->second(hidden).sum().backward(), std::runtime_error);
}

TEST(ApplyInBackward, goes_on_after_a_backward_that_threw) {
  expect_equal_everywhere<FusedSgd>(torch::optim::SGDOptions(0.1), [](const Mesh& mesh, test::Net& net) {
    test::backward(mesh, net);
    backward_that_throws(net, shard_batch(mesh, test::inputs()));
    net->zero_grad();
    test::fill(*net);
  });
}

struct SomebodysHook final : torch::autograd::PostAccumulateGradHook {
  void operator()(const torch::autograd::Variable&) override {}
};

TEST(ApplyInBackward, RefusesAParameterWithSomebodyElsesHook) {
  test::Net net = test::make_net();
  torch::autograd::impl::set_post_acc_grad_hooks(net->first->weight, std::make_unique<SomebodysHook>());
  try {
    (void)apply_in_backward<FusedSgd>(net->parameters(), torch::optim::SGDOptions(0.1));
    FAIL() << "its hook would be lost";
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("parameter [14, 10]"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace tessera
