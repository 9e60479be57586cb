// SPDX-License-Identifier: Apache-2.0
// ZeRO 3 with parameters gathered ahead of their use: the same numbers and messages, only earlier.
#include <gtest/gtest.h>

#include "module/models.h"
#include "tessera/base/error.h"
#include "tessera/module/apply_in_backward.h"
#include "tessera/module/fused_optimizers.h"

namespace tessera {
namespace {

using at::Tensor;

constexpr std::int64_t kEverything = std::int64_t{1} << 30;

/// Layers of one size in an order that may change from step to step.
struct ChainImpl : torch::nn::Module {
  ChainImpl() {
    for (int i = 0; i < 3; ++i) {
      layers->push_back(torch::nn::Linear(10, 10));
    }
    register_module("layers", layers);
    to(torch::kDouble);
  }
  Tensor forward(Tensor x) {
    for (const std::size_t index : order) {
      x = torch::tanh(layers[index]->as<torch::nn::Linear>()->forward(x));
      if (after_layer) after_layer();
    }
    return x;
  }
  torch::nn::ModuleList layers;
  std::vector<std::size_t> order{0, 1, 2};
  std::function<void()> after_layer;
};
TORCH_MODULE(Chain);

Chain make_chain() {
  Chain chain;
  test::fill(*chain);
  return chain;
}

Tensor goal() { return test::inputs(9) * 0.5; }
/// Of one layer, gathered.
constexpr std::int64_t kLayerBytes = (10 * 10 + 10) * 8;

Plan zero_3(std::int64_t prefetch_bytes) { return Plan().zero(3).prefetch_bytes(prefetch_bytes); }

using Orders = std::vector<std::vector<std::size_t>>;

/// One step for each order, an evaluation after every second; returns the losses of both.
std::vector<double> train(Chain& chain, torch::optim::Optimizer* optimizer, const Orders& orders,
                          const std::function<Tensor(const Tensor&)>& place) {
  std::vector<double> losses;
  for (std::size_t index = 0; index < orders.size(); ++index) {
    chain->order = orders[index];
    if (optimizer != nullptr) optimizer->zero_grad();
    losses.push_back(
        step(*chain, place(test::inputs(static_cast<int>(index))), place(goal()), test::squared_error).item<double>());
    if (optimizer != nullptr) optimizer->step();
    if (index % 2 == 0) continue;
    const at::NoGradGuard no_grad;
    losses.push_back(test::squared_error(chain->forward(place(test::inputs(-1))), place(goal())).item<double>());
    losses.push_back(test::squared_error(chain->forward(place(test::inputs(-2))), place(goal())).item<double>());
  }
  return losses;
}

/// Steps that go alike, then another way, then with a layer used twice, then with one left out.
const Orders& orders() {
  static const Orders kOrders{{0, 1, 2}, {0, 1, 2},    {0, 1, 2},    {2, 1, 0},
                              {2, 1, 0}, {0, 1, 0, 2}, {0, 1, 0, 2}, {0, 2}};
  return kOrders;
}

TEST(GatherAhead, trains_as_one_device_whatever_the_window_mesh_and_order) {
  const torch::optim::AdamWOptions options(1e-2);
  Chain alone = make_chain();
  FusedAdamW adam(alone->parameters(), options);
  const std::vector<double> expected = train(alone, &adam, orders(), [](const Tensor& x) { return x; });
  for (const char* axes :
       {"dp_shard=2", "dp_shard=3", "dp_replicate=2,dp_shard=2", "dp_shard=2,tp=2", "pp=2,dp_shard=2"}) {
    for (const std::int64_t window : {std::int64_t{1}, kLayerBytes, kEverything}) {
      for (const bool in_backward : {false, true}) {
        SCOPED_TRACE(std::string(axes) + ", window " + std::to_string(window));
        test::on_mesh(axes, [&](const Mesh& mesh) {
          Chain chain = make_chain();
          Plan plan = zero_3(window);
          plan.add("layers.0.*", {{"tp", Shard(0)}}).add("layers.1.weight", {{"tp", Shard(1)}});
          plan.stages({{"layers.0"}, {"layers.1-2"}});
          distribute(*chain, mesh, plan);
          std::unique_ptr<FusedAdamW> optimizer;
          std::optional<ApplyInBackward> updates;
          if (in_backward) {
            updates.emplace(apply_in_backward<FusedAdamW>(chain->parameters(), options));
          } else {
            optimizer = std::make_unique<FusedAdamW>(chain->parameters(), options);
          }
          const auto found =
              train(chain, optimizer.get(), orders(), [&](const Tensor& x) { return shard_batch(mesh, x); });
          for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(found[i], expected[i], test::kRounding) << i;
          for (std::size_t i = 0; i < alone->parameters().size(); ++i) {
            EXPECT_LE(test::difference(chain->parameters()[i], alone->parameters()[i]), test::kRounding) << i;
          }
        });
      }
    }
  }
}

/// What each step sends, of every rank the first one's, along dp_shard.
std::vector<std::pair<std::int64_t, std::int64_t>> traffic_of_steps(const std::string& axes, std::int64_t window) {
  std::vector<std::pair<std::int64_t, std::int64_t>> result;
  test::on_mesh(axes, [&](const Mesh& mesh) {
    Chain chain = make_chain();
    distribute(*chain, mesh, zero_3(window).stages({{"layers.0"}, {"layers.1-2"}}));
    const comm::Communicator& group = mesh.along(mesh.axis_index("dp_shard"));
    for (int index = 0; index < 4; ++index) {
      const comm::Traffic before = group.traffic();
      (void)step(*chain, shard_batch(mesh, test::inputs()), shard_batch(mesh, goal()), test::squared_error);
      if (mesh.rank() == 0)
        result.emplace_back(group.traffic().calls - before.calls, group.traffic().bytes - before.bytes);
    }
  });
  return result;
}

TEST(GatherAhead, sends_what_gathering_at_use_sends) {
  for (const char* axes : {"dp_shard=2", "dp_shard=3", "pp=2,dp_shard=2"}) {
    const auto expected = traffic_of_steps(axes, 0);
    for (const std::int64_t window : {kLayerBytes, kEverything}) {
      EXPECT_EQ(traffic_of_steps(axes, window), expected) << axes << ", window " << window;
    }
  }
}

/// Bytes gathered, in a pass of `order`, by the time the first layer was computed: those of the layer, and ahead.
std::int64_t gathered_after_first_layer(const Mesh& mesh, Chain& chain) {
  const std::int64_t before = mesh.traffic().bytes;
  std::int64_t found = -1;
  chain->after_layer = [&] {
    if (found < 0) found = mesh.traffic().bytes - before;
  };
  (void)step(*chain, shard_batch(mesh, test::inputs()), shard_batch(mesh, goal()), test::squared_error);
  chain->after_layer = nullptr;
  return found;
}

TEST(GatherAhead, gathers_in_the_order_of_the_step_before_as_much_as_the_window_takes) {
  // Three layers in forward; backward needs the weights of two, since the batch has no gradient. A bias comes before
  // its weight: the smaller window takes the one and not the other.
  constexpr std::int64_t kRest = 2 * kLayerBytes + 2 * (10 * 10 * 8);
  for (const auto& [window, ahead] : std::vector<std::pair<std::int64_t, std::int64_t>>{
           {0, 0}, {1, 0}, {10 * 10 * 8, 10 * 8}, {kLayerBytes, kLayerBytes}, {kEverything, kRest}}) {
    SCOPED_TRACE(window);
    test::on_mesh("dp_shard=2", [&, window = window, ahead = ahead](const Mesh& mesh) {
      Chain chain = make_chain();
      distribute(*chain, mesh, zero_3(window));
      EXPECT_EQ(gathered_after_first_layer(mesh, chain), kLayerBytes) << "nothing was learned yet";
      EXPECT_EQ(gathered_after_first_layer(mesh, chain), kLayerBytes + ahead);
      EXPECT_EQ(gathered_after_first_layer(mesh, chain), kLayerBytes + ahead);
    });
  }
}

TEST(GatherAhead, learns_another_order_from_the_first_step_that_has_it) {
  test::on_mesh("dp_shard=2", [](const Mesh& mesh) {
    Chain chain = make_chain();
    distribute(*chain, mesh, zero_3(kLayerBytes));
    for (int i = 0; i < 2; ++i) (void)gathered_after_first_layer(mesh, chain);
    chain->order = {2, 0, 1};
    EXPECT_EQ(gathered_after_first_layer(mesh, chain), kLayerBytes) << "the order that was learned does not hold";
    EXPECT_EQ(gathered_after_first_layer(mesh, chain), 2 * kLayerBytes);
  });
}

TEST(GatherAhead, goes_on_after_passes_without_backward) {
  test::on_mesh("dp_shard=2", [](const Mesh& mesh) {
    Chain chain = make_chain();
    distribute(*chain, mesh, zero_3(kLayerBytes));
    (void)gathered_after_first_layer(mesh, chain);
    const at::NoGradGuard no_grad;
    for (int i = 0; i < 3; ++i) {
      const std::int64_t before = mesh.traffic().bytes;
      (void)chain->forward(shard_batch(mesh, test::inputs()));
      // Forward, and in vain the first weights of backward.
      const std::int64_t in_vain = 10 * 10 * 8;
      EXPECT_EQ(mesh.traffic().bytes - before, 3 * kLayerBytes + in_vain);
    }
    const at::AutoGradMode with_grad(true);
    EXPECT_EQ(gathered_after_first_layer(mesh, chain), 2 * kLayerBytes);
  });
}

/// Changes a parameter in each of three steps, after its gather is over and before it is used; returns the last loss.
double train_with_changes(Chain& chain, const std::function<Tensor(const Tensor&)>& place,
                          const std::function<void()>& finish_gathers, const std::function<void()>& change) {
  double last = 0;
  for (int index = 0; index < 3; ++index) {
    int layer = 0;
    chain->after_layer = [&] {
      if (layer++ != 0) return;
      finish_gathers();
      change();
    };
    last = step(*chain, place(test::inputs()), place(goal()), test::squared_error).item<double>();
  }
  return last;
}

void expect_changes_are_seen(const std::function<std::function<void()>(Chain& chain)>& make_change) {
  Chain alone = make_chain();
  const double expected = train_with_changes(
      alone, [](const Tensor& x) { return x; }, [] {}, make_change(alone));
  for (const char* axes : {"dp_shard=2", "dp_shard=3"}) {
    test::on_mesh(axes, [&](const Mesh& mesh) {
      Chain chain = make_chain();
      distribute(*chain, mesh, zero_3(kEverything));
      const auto place = [&](const Tensor& x) { return shard_batch(mesh, x); };
      // A barrier waits for everything that was started.
      const auto finish_gathers = [&] { mesh.everyone().barrier(); };
      EXPECT_NEAR(train_with_changes(chain, place, finish_gathers, make_change(chain)), expected, test::kRounding);
    });
  }
}

TEST(GatherAhead, sees_what_was_written_meanwhile) {
  expect_changes_are_seen([](Chain& chain) {
    return [&chain] {
      const at::NoGradGuard no_grad;
      chain->parameters()[2].mul_(0.9);
      chain->parameters()[4].detach().copy_(chain->parameters()[2]);
    };
  });
}

TEST(GatherAhead, sees_an_update_of_the_shard_meanwhile) {
  expect_changes_are_seen([](Chain& chain) {
    // With the gradient of the step before.
    const auto optimizer = std::make_shared<FusedSgd>(std::vector<Tensor>{chain->parameters()[4]}, 0.1);
    return [optimizer] { optimizer->step(); };
  });
}

TEST(GatherAhead, follows_micro_batches_that_are_reduced_together) {
  test::on_mesh("dp_shard=2", [](const Mesh& mesh) {
    Chain chain = make_chain();
    distribute(*chain, mesh, zero_3(kLayerBytes));
    const auto two = [&] {
      std::int64_t first = 0;
      {
        const NoSync no_sync(*chain);
        first = gathered_after_first_layer(mesh, chain);
      }
      return std::pair(first, gathered_after_first_layer(mesh, chain));
    };
    (void)two();
    const auto [first, second] = two();
    EXPECT_EQ(first, 2 * kLayerBytes);
    // The first layer's gather was started in the backward before.
    EXPECT_EQ(second, kLayerBytes);
  });
}

TEST(GatherAhead, trains_as_one_device_in_the_order_of_a_pipeline_schedule) {
  const torch::optim::SGDOptions options(0.1);
  const auto train_steps = [](Chain& chain, FusedSgd* optimizer, const StepOptions& step_options) {
    for (int index = 0; index < 4; ++index) {
      if (optimizer != nullptr) optimizer->zero_grad();
      (void)step(*chain, test::inputs(index), goal(), test::squared_error, step_options);
      if (optimizer != nullptr) optimizer->step();
    }
  };
  Chain alone = make_chain();
  FusedSgd expected(alone->parameters(), options);
  train_steps(alone, &expected, {});
  for (const std::int64_t window : {std::int64_t{0}, kLayerBytes, kEverything}) {
    for (const bool in_backward : {false, true}) {
      SCOPED_TRACE(window);
      test::on_mesh("pp=2,dp_shard=2", [&](const Mesh& mesh) {
        Chain chain = make_chain();
        distribute(*chain, mesh, zero_3(window).stages({{"layers.0"}, {"layers.1-2"}}));
        FusedSgd optimizer(chain->parameters(), options);
        std::optional<ApplyInBackward> updates;
        if (in_backward) updates.emplace(apply_in_backward<FusedSgd>(chain->parameters(), options));
        train_steps(chain, in_backward ? nullptr : &optimizer, {.microbatches = 4});
        for (std::size_t i = 0; i < alone->parameters().size(); ++i) {
          EXPECT_LE(test::difference(chain->parameters()[i], alone->parameters()[i]), test::kRounding) << i;
        }
      });
    }
  }
}

TEST(Plan, WritesAndReadsWhatItGathersAhead) {
  EXPECT_EQ(Plan::parse(zero_3(4096).to_toml(), "plan.toml").prefetch_bytes(), 4096);
  EXPECT_EQ(Plan::parse("zero = 3", "plan.toml").prefetch_bytes(), 0);
}

TEST(Plan, RefusesAWindowThatIsNone) {
  EXPECT_THROW(Plan().prefetch_bytes(-1), ConfigError);
  try {
    (void)Plan::parse("zero = 3\nprefetch_bytes = \"8 MiB\"", "plan.toml");
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("plan.toml:2: prefetch_bytes must be a number of bytes"),
              std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace tessera
