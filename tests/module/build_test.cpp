// SPDX-License-Identifier: Apache-2.0
// Modules built without memory: their values depend neither on the plan nor on the mesh, and no rank holds them whole.
#include "tessera/module/build.h"

#include <gtest/gtest.h>

#include <torch/torch.h>

#include <functional>
#include <map>

#include "support/ranks.h"
#include "tessera/base/error.h"
#include "tessera/pipeline/step.h"
#include "tessera/tensor/random.h"

namespace tessera {
namespace {

using at::Tensor;
namespace nn = torch::nn;

/// Initialisation of every kind, as users write it.
struct ZooImpl : nn::Module {
  ZooImpl()
      : linear(register_module("linear", nn::Linear(6, 9))),
        norm(register_module("norm", nn::LayerNorm(nn::LayerNormOptions({9})))),
        conv(register_module("conv", nn::Conv2d(nn::Conv2dOptions(3, 5, 3)))),
        embedding(register_module("embedding", nn::Embedding(nn::EmbeddingOptions(7, 4).padding_idx(5)))),
        batch_norm(register_module("batch_norm", nn::BatchNorm2d(5))),
        lstm(register_module("lstm", nn::LSTM(4, 3))),
        attention(register_module("attention", nn::MultiheadAttention(nn::MultiheadAttentionOptions(8, 2)))) {
    const at::NoGradGuard no_grad;
    nn::init::xavier_normal_(linear->weight);
    linear->weight.slice(0, 0, 3).zero_();
    linear->weight.slice(0, 2, 7).slice(1, 1, 4).fill_(0.25);
    linear->weight.select(0, 8).normal_(1, 2);
    linear->weight.slice(1, 4).mul_(3).add_(1);
    linear->weight.index({8, 5}).fill_(-1);
    linear->bias.copy_(torch::linspace(0, 1, 9));
    linear->bias.narrow(0, 3, 4).copy_(torch::randn({4}) * 0.5);
    noise = register_parameter("noise", torch::randn({5, 4}) * 0.02 + torch::ones({4}));
    for (Tensor& part : noise.chunk(2, 0)) part.uniform_(2, 3);
    mixed = register_parameter("mixed", torch::empty({6, 4}).uniform_(-1, 1).t());
    constants = register_buffer("constants", torch::arange(5, torch::kDouble).mul_(2));
    list = register_buffer("list", torch::tensor({1.5, 2.5, 3.5}));
    given = register_parameter("given", torch::zeros({4, 2}));
    given.copy_(given_values());
    frozen = register_parameter("frozen", torch::full({3}, 7.0), /*requires_grad=*/false);
    rounded = register_parameter("rounded", torch::rand({6}).to(torch::kBFloat16).to(torch::kDouble));
  }
  /// An ordinary tensor: made before the first build.
  static Tensor given_values() {
    static const Tensor values = at::arange(8, at::kFloat).view({4, 2});
    return values;
  }
  nn::Linear linear;
  nn::LayerNorm norm;
  nn::Conv2d conv;
  nn::Embedding embedding;
  nn::BatchNorm2d batch_norm;
  nn::LSTM lstm;
  nn::MultiheadAttention attention;
  Tensor noise, mixed, constants, list, given, frozen, rounded;
};
TORCH_MODULE(Zoo);

Zoo make_zoo() { return {}; }

using Values = std::map<std::string, Tensor>;

Values values_of(const nn::Module& module) {
  Values values;
  for (const auto& item : module.named_parameters()) values[item.key()] = full(item.value().detach()).clone();
  for (const auto& item : module.named_buffers()) values[item.key()] = full(item.value()).clone();
  return values;
}

Values build_alone() {
  (void)ZooImpl::given_values();
  const Mesh mesh(comm::make_single_world(), {});
  manual_seed(mesh, 5);
  return values_of(*build(mesh, Plan(), make_zoo));
}

/// Every parameter along dim 0; by columns where there are any.
Plan rows_over(const std::string& axis) { return Plan().add("*", {{axis, Shard(0)}}); }

TEST(Build, GivesTheSameBitsOnEveryMeshUnderEveryPlan) {
  const Values expected = build_alone();
  const Plan rows_and_columns = Plan()
                                    .add("*bias*", {{"tp", Shard(0)}})
                                    .add("*norm*", {{"tp", Shard(0)}})
                                    .add("frozen", {{"tp", Shard(0)}})
                                    .add("rounded", {{"tp", Shard(0)}})
                                    .add("*", {{"dp_replicate", Shard(0)}, {"tp", Shard(1)}});
  const std::vector<std::pair<std::string, Plan>> cases{{"dp=1", {}},
                                                        {"dp=2", {}},
                                                        {"dp=2", rows_over("dp_replicate")},
                                                        {"tp=2", rows_over("tp")},
                                                        {"tp=3", rows_over("tp")},
                                                        {"dp_shard=4", rows_over("dp_shard")},
                                                        {"tp=3", rows_and_columns},
                                                        {"dp=2,tp=2", rows_and_columns}};
  for (const auto& [axes, plan] : cases) {
    test::on_mesh(axes, [&, axes = axes, plan = plan](const Mesh& mesh) {
      manual_seed(mesh, 5);
      Zoo zoo = build(mesh, plan, make_zoo);
      for (const auto& item : zoo->named_parameters()) {
        ASSERT_TRUE(is_mesh_tensor(item.value())) << item.key();
        ASSERT_EQ(item.value().requires_grad(), item.key() != "frozen") << item.key();
        const Placements planned = plan.layout_of(item.key(), item.value().dim(), mesh).value;
        if (mesh.size() > 1) {
          ASSERT_EQ(placements(item.value()), planned) << item.key() << " on " << axes;
        }
      }
      const Values found = values_of(*zoo);
      ASSERT_EQ(found.size(), expected.size());
      for (const auto& [name, value] : expected) {
        ASSERT_TRUE(at::equal(found.at(name), value)) << name << " on " << axes << "\n" << found.at(name) << value;
      }
    });
  }
}

TEST(Build, DoesWhatTheConstructorSays) {
  const Values values = build_alone();
  const Tensor weight = values.at("linear.weight");
  EXPECT_TRUE(at::equal(weight.slice(0, 0, 2).slice(1, 0, 4), at::zeros({2, 4})));
  EXPECT_TRUE(at::equal(weight.slice(0, 0, 2).slice(1, 4), at::ones({2, 2})));
  EXPECT_TRUE(at::equal(weight.slice(0, 2, 7).slice(1, 1, 4), at::full({5, 3}, 0.25)));
  EXPECT_EQ(weight[8][5].item<float>(), -1);
  EXPECT_FALSE(at::equal(weight[8], weight[7]));
  const Tensor bias = values.at("linear.bias");
  EXPECT_TRUE(at::equal(bias.slice(0, 0, 3), at::linspace(0, 1, 9).slice(0, 0, 3)));
  EXPECT_FALSE(at::equal(bias.slice(0, 3, 7), at::linspace(0, 1, 9).slice(0, 3, 7)));
  EXPECT_TRUE(at::equal(values.at("embedding.weight")[5], at::zeros({4})));
  EXPECT_TRUE(values.at("noise").ge(2).logical_and(values.at("noise").le(3)).all().item<bool>());
  EXPECT_EQ(values.at("mixed").sizes(), (std::vector<std::int64_t>{4, 6}));
  EXPECT_TRUE(at::equal(values.at("constants"), at::arange(5, at::kDouble) * 2));
  EXPECT_TRUE(at::equal(values.at("list"), at::tensor({1.5F, 2.5F, 3.5F})));
  EXPECT_TRUE(at::equal(values.at("given"), ZooImpl::given_values()));
  EXPECT_TRUE(at::equal(values.at("norm.weight"), at::ones({9})));
  EXPECT_TRUE(at::equal(values.at("batch_norm.running_var"), at::ones({5})));
  EXPECT_EQ(values.at("batch_norm.num_batches_tracked").item<std::int64_t>(), 0);
  EXPECT_EQ(values.at("rounded").scalar_type(), at::kDouble);
  // kaiming_uniform_ of fan_in 27: within its bound, and near it.
  const double bound = std::sqrt(1.0 / 27);
  EXPECT_LE(values.at("conv.weight").abs().max().item<double>(), bound);
  EXPECT_GT(values.at("conv.weight").abs().max().item<double>(), bound * 0.9);
}

TEST(Build, TrainsAsAModuleThatWasDistributed) {
  test::on_mesh("dp_shard=2", [](const Mesh& mesh) {
    const Plan plan = rows_over("dp_shard");
    manual_seed(mesh, 1);
    const auto make = [] { return nn::Sequential(nn::Linear(6, 8), nn::ReLU(), nn::Linear(8, 4)); };
    nn::Sequential built = build(mesh, plan, make);
    nn::Sequential reference = make();
    {
      const at::NoGradGuard no_grad;
      for (std::size_t i = 0; i < built->parameters().size(); ++i) {
        reference->parameters()[i].copy_(full(built->parameters()[i].detach()));
      }
    }
    distribute(*reference, mesh, plan);
    torch::optim::AdamW of_built(built->parameters(), 0.1);
    torch::optim::AdamW of_reference(reference->parameters(), 0.1);
    const Tensor x = shard_batch(mesh, at::linspace(-1, 1, 48).view({8, 6}));
    const Tensor y = shard_batch(mesh, at::arange(8, at::kLong).remainder(4));
    for (int i = 0; i < 3; ++i) {
      const auto train = [&](nn::Sequential& model, torch::optim::Optimizer& optimizer) {
        optimizer.zero_grad();
        const auto loss_of = [](const Tensor& a, const Tensor& b) { return nn::functional::cross_entropy(a, b); };
        const double loss = step(*model, x, y, loss_of).item<double>();
        optimizer.step();
        return loss;
      };
      EXPECT_EQ(train(built, of_built), train(reference, of_reference));
    }
  });
}

TEST(Build, TakesAPlanThatIsMadeFromTheModule) {
  test::on_mesh("tp=2", [](const Mesh& mesh) {
    const auto plan = [](const nn::Module& module) { return plan_for_mlp(module.named_parameters().keys()); };
    const auto built = build(mesh, plan, [] { return nn::Sequential(nn::Linear(6, 8), nn::Linear(8, 4)); });
    EXPECT_EQ(placements(built->parameters()[0]), (Placements{Shard(0)}));
    EXPECT_EQ(placements(built->parameters()[2]), (Placements{Shard(1)}));
  });
}

TEST(Build, KeepsTiedParametersTied) {
  struct Tied : nn::Module {
    Tied() : weight(register_parameter("weight", torch::rand({4, 4}))) { register_parameter("again", weight); }
    Tensor weight;
  };
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    const auto built = build(mesh, rows_over("dp_replicate"), [] { return std::make_shared<Tied>(); });
    EXPECT_TRUE(built->weight.is_same(built->named_parameters()["again"]));
    EXPECT_TRUE(is_mesh_tensor(built->weight));
  });
}

TEST(Build, MakesNoMemoryBeforeThePlanIsKnown) {
  const Mesh mesh(comm::make_single_world(), {});
  // 64 Gi parameters, which no machine of ours has.
  try {
    (void)build(mesh, Plan().add("nothing", {{"tp", Shard(0)}}), [] { return nn::Linear(1 << 20, 1 << 16); });
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("matches no parameter"), std::string::npos) << error.what();
  }
}

template <class Make>
std::string refusal(const Make& make) {
  const Mesh mesh(comm::make_single_world(), {});
  try {
    (void)build(mesh, Plan(), [&] { return std::make_shared<decltype(make())>(make()); });
  } catch (const ConfigError& error) {
    // A recording that failed must not go on.
    EXPECT_TRUE(torch::ones({2}).equal(torch::ones({2})));
    return error.what();
  }
  return "nothing was thrown";
}

struct Module : nn::Module {
  explicit Module(const std::function<void(const Tensor&)>& init) {
    init(register_parameter("weight", torch::empty({4, 6})));
  }
};

std::string refusal_of(const std::function<void(const Tensor&)>& init) {
  return refusal([&] { return Module(init); });
}

/// What constructors do to tables, masks and weights; LibTorch has no meta kernel for most of it.
struct Made {
  std::string name;
  std::function<Tensor(const Tensor&)> make;  ///< of 0 1 2 ... 11 as [3, 4] of doubles
};

const std::vector<Made>& everyday_operators() {
  static const std::vector<Made> kOperators{
      {"abs", [](const Tensor& t) { return (t - 5).abs(); }},
      {"abs_", [](const Tensor& t) { return (t - 5).abs_().t(); }},
      {"relu", [](const Tensor& t) { return torch::relu(t - 5); }},
      {"where", [](const Tensor& t) { return torch::where(t > 3, t, torch::zeros_like(t)); }},
      {"std", [](const Tensor& t) { return t / t.std(); }},
      {"min", [](const Tensor& t) { return t - t.min() + std::get<0>(t.max(1, true)); }},
      {"flip", [](const Tensor& t) { return t.flip({0}) + t.roll(1, 0); }},
      {"logical_and", [](const Tensor& t) { return torch::logical_and(t > 1, t < 5); }},
      {"floor_divide", [](const Tensor& t) { return t.to(torch::kLong).floor_divide(t.to(torch::kLong) + 1); }},
      {"tril_indices", [](const Tensor&) { return torch::tril_indices(3, 3); }},
      {"polar",
       [](const Tensor& t) {
         return torch::view_as_real(torch::polar(torch::ones({3, 4}, torch::kDouble), t));
       }},
      {"one_hot", [](const Tensor&) { return torch::one_hot(torch::arange(4), 4); }},
      {"sines",
       [](const Tensor& t) {
         const Tensor angles =
             torch::arange(6, torch::kDouble).unsqueeze(1) / torch::pow(100.0, torch::arange(2, torch::kDouble) / 2);
         const Tensor table = torch::zeros({6, 4}, torch::kDouble);
         table.slice(1, 0, 4, 2).copy_(angles.sin());
         table.slice(1, 1, 4, 2).copy_(angles.cos());
         return table + t.sum();
       }},
      {"mask",
       [](const Tensor& t) {
         return torch::zeros({4, 4}, torch::kDouble).masked_fill(torch::ones({4, 4}).triu(1).to(torch::kBool), -1e9) +
                t[0];
       }},
      {"fft",
       [](const Tensor& t) {
         return torch::fft_irfft(torch::fft_rfft(t) * 2, 4) + torch::hann_window(4, torch::kDouble);
       }},
      {"inverse", [](const Tensor& t) { return torch::linalg_inv(t.mm(t.t()) + torch::eye(3, torch::kDouble)); }},
      {"outer_meshgrid",
       [](const Tensor& t) {
         const auto grid = torch::meshgrid({t[0], t[1]}, "ij");
         return grid[0] * grid[1];
       }},
      {"index_put", [](const Tensor& t) { return t.clone().index_put_({t > 4}, torch::tensor(2.5, torch::kDouble)); }},
      {"gather_sort", [](const Tensor& t) { return t.gather(1, std::get<1>(t.sin().sort(1))).cumsum(1); }},
      {"bucketize", [](const Tensor& t) { return torch::bucketize(t, torch::arange(5, torch::kDouble)); }},
      {"expand",
       [](const Tensor& t) {
         return t[0].expand({5, 4}).abs();
       }},
      {"items",
       [](const Tensor& t) {
         Tensor rates = torch::linspace(0, 0.3, 4, torch::kDouble);
         const double last = rates[3].item<double>();
         rates.mul_(2);
         return t * rates[2].item<double>() + last + (t.max().item<double>() > 10 ? 1 : 0);
       }},
      {"nonzero",
       [](const Tensor& t) { return (t > 4).nonzero() * std::get<0>(torch::_unique2(t.floor_divide(2))).size(0); }},
      {"one_hot_of_all", [](const Tensor&) { return torch::one_hot(torch::arange(4).remainder(3)); }},
      {"repeat_interleave", [](const Tensor& t) { return t.repeat_interleave(torch::arange(3), 0); }},
      {"masked_select", [](const Tensor& t) { return t.masked_select(t > 4) * 2; }},
      {"diagonal",
       [](const Tensor& t) {
         Tensor made = t.clone();
         made.diagonal().fill_(7);
         return made;
       }},
  };
  return kOperators;
}

struct MadeModule : nn::Module {
  explicit MadeModule(const Made& made) {
    const at::NoGradGuard no_grad;
    const Tensor value = made.make(torch::arange(12, torch::kDouble).view({3, 4}));
    buffer = register_buffer("buffer", value);
    weight = register_parameter("weight", value.to(torch::kDouble) * 2);
  }
  Tensor buffer, weight;
};

TEST(Build, TakesEverydayOperatorsInAConstructor) {
  for (const Made& made : everyday_operators()) {
    SCOPED_TRACE(made.name);
    const MadeModule expected(made);
    for (const char* axes : {"dp=1", "dp=2", "tp=2"}) {
      test::on_mesh(axes, [&](const Mesh& mesh) {
        const Plan plan = Plan().add("weight", {{"tp", Shard(0)}});
        const auto built =
            build(mesh, mesh.axis_index("tp") < 0 ? Plan() : plan, [&] { return std::make_shared<MadeModule>(made); });
        EXPECT_EQ(built->buffer.scalar_type(), expected.buffer.scalar_type());
        EXPECT_TRUE(full(built->buffer).allclose(expected.buffer, 1e-12, 1e-12)) << axes;
        EXPECT_TRUE(full(built->weight).detach().allclose(expected.weight, 1e-12, 1e-12)) << axes;
      });
    }
  }
}

TEST(Build, DrawsTheSameOrthogonalWeightsOnEveryMesh) {
  Tensor expected;
  for (const char* axes : {"dp=1", "dp=2", "tp=2"}) {
    test::on_mesh(axes, [&](const Mesh& mesh) {
      manual_seed(mesh, 3);
      const Plan plan = mesh.axis_index("tp") < 0 ? Plan() : Plan().add("weight", {{"tp", Shard(0)}});
      const auto built =
          build(mesh, plan, [] { return std::make_shared<Module>([](const Tensor& w) { nn::init::orthogonal_(w); }); });
      const Tensor found = full(built->parameters()[0]).detach();
      EXPECT_TRUE(found.mm(found.t()).allclose(torch::eye(4), 1e-5, 1e-5));
      if (mesh.rank() != 0) return;
      if (!expected.defined()) expected = found;
      EXPECT_TRUE(found.allclose(expected, 1e-6, 1e-6)) << axes;
    });
  }
}

TEST(Build, RefusesSizesThatDependOnValues) {
  const auto refusal_to_repeat = refusal_of(
      [](const Tensor&) { (void)torch::arange(3).repeat_interleave(torch::rand({3}).mul(0).add(2).to(torch::kLong)); });
  EXPECT_NE(refusal_to_repeat.find("aten::repeat_interleave gives [6], which depends on values"), std::string::npos)
      << refusal_to_repeat;
  EXPECT_NE(refusal_of([](const Tensor&) {
              (void)torch::one_hot(torch::randint(3, {4}, torch::kLong));
            }).find("aten::one_hot needs the values"),
            std::string::npos);
}

TEST(Build, RefusesToComputeWhatIsLargeForItsSizes) {
  const at::NoGradGuard no_grad;
  EXPECT_NE(refusal_of([](const Tensor&) {
              (void)torch::ones({1 << 13, 1 << 13}).abs();
            }).find("more than 64 MiB"),
            std::string::npos);
}

TEST(Build, RefusesWhatNeedsValuesAndNamesIt) {
  const at::NoGradGuard no_grad;
  EXPECT_NE(refusal_of([](const Tensor& w) { (void)w.sum().item<float>(); }).find("aten::item needs the values"),
            std::string::npos);
  EXPECT_NE(refusal_of([](const Tensor& w) { w.data_ptr<float>()[0] = 1; }).find("tensors have no values until"),
            std::string::npos);
  EXPECT_NE(refusal_of([](const Tensor& w) { (void)w.nonzero(); }).find("aten::nonzero needs the values"),
            std::string::npos);
  const Tensor ordinary = at::zeros({4, 6});
  EXPECT_NE(refusal_of([&](const Tensor& w) { ordinary.copy_(w); }).find("into a tensor that was made before"),
            std::string::npos);
}

TEST(Build, RefusesWhatAMeshCannotDraw) {
  const at::NoGradGuard no_grad;
  const auto generator = at::make_generator<at::CPUGeneratorImpl>(1);
  EXPECT_NE(refusal_of([&](const Tensor& w) { w.normal_(0, 1, generator); }).find("tessera::manual_seed"),
            std::string::npos);
  EXPECT_NE(refusal_of([](const Tensor& w) { w.copy_(torch::randperm(6)); }).find("aten::randperm"), std::string::npos);
}

TEST(Build, RefusesAPlanThatDoesNotFitAndNamesTheParameter) {
  test::on_mesh("dp=2", [](const Mesh& mesh) {
    try {
      (void)build(mesh, Plan().add("bias", {{"dp", Shard(1)}}), [] { return nn::Linear(4, 4); });
      FAIL() << "a bias has one dim";
    } catch (const ShapeError& error) {
      EXPECT_NE(std::string(error.what()).find("parameter bias"), std::string::npos) << error.what();
    }
  });
}

TEST(Build, WritesIntoAnySliceAcrossShards) {
  const at::NoGradGuard no_grad;
  const std::vector<std::function<void(const Tensor&)>> writes = {
      [](const Tensor& w) { w.slice(0, 0, 3).t().detach().zero_(); },
      [](const Tensor& w) { w.slice(0, 0, 4, 2).fill_(2); },
      [](const Tensor& w) { w.diagonal().fill_(3); },
      [](const Tensor& w) { w.chunk(3)[1].add_(4); },
      [](const Tensor& w) { w.unbind(0)[3].copy_(torch::arange(6)); },
      [](const Tensor& w) { w.view(-1).slice(0, 3, 15).fill_(5); },
  };
  for (std::size_t i = 0; i < writes.size(); ++i) {
    SCOPED_TRACE(i);
    const auto init = [&](const Tensor& w) {
      w.zero_();
      writes[i](w);
    };
    Module plain(init);
    for (const char* axes : {"dp=2", "dp=3"}) {
      test::on_mesh(axes, [&](const Mesh& mesh) {
        const auto built = build(mesh, rows_over("dp_replicate"), [&] { return std::make_shared<Module>(init); });
        EXPECT_TRUE(at::equal(full(built->parameters()[0]), plain.parameters()[0]));
      });
    }
  }
}

}  // namespace
}  // namespace tessera
