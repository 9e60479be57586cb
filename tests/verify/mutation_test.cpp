// SPDX-License-Identifier: Apache-2.0
// The judge must be able to say no: every classic mistake of parallel training, seeded on purpose, is caught.
#include <gtest/gtest.h>

#include <torch/torch.h>

#include <limits>
#include <mutex>

#include "support/ranks.h"
#include "tensor/distributions.h"
#include "tessera/tensor/mesh_tensor.h"
#include "tessera/tensor/random.h"
#include "tessera/train/session.h"
#include "verify/saboteur.h"

namespace tessera {
namespace {

using test::Sabotage;

train::TrainConfig small_mlp() {
  train::TrainConfig config;
  config.model.name = "mlp";
  config.model.sizes = {16, 24, 24, 10};
  config.data.source = "synthetic";
  config.optimizer.name = "sgd";
  config.optimizer.lr = 0.05;
  config.precision = "fp64";
  config.batch = 12;
  config.steps = 3;
  return config;
}

std::shared_ptr<const train::Dataset> data_for(const train::TrainConfig& config) {
  const train::Workload shape = train::make_workload(config.model, 0);
  return std::make_shared<const train::Dataset>(train::load_dataset(config.data, shape.input, 0));
}

/// Changes one rank's run before it is compared.
using Meddle = std::function<void(train::Session&, verify::Subject&, const Mesh&)>;
/// Changes one rank's configuration.
using Reconfigure = std::function<void(train::TrainConfig&, int rank)>;

verify::Deviations deviations(const std::string& axes, Sabotage sabotage, const Meddle& meddle = {},
                              const Reconfigure& reconfigure = {}, const train::TrainConfig& config = small_mlp()) {
  const auto data = data_for(config);
  at::set_num_threads(1);
  std::optional<Mesh> one_rank;
  if (config.model.dropout > 0) one_rank.emplace(comm::make_single_world(), std::vector<Axis>{});
  train::Session alone(config, data, one_rank);
  const verify::Trace reference = verify::record(alone.subject(), config.steps);
  verify::Deviations total;
  std::mutex mutex;
  int ranks = 1;
  for (const Axis& axis : parse_axes(axes)) ranks *= axis.size;
  test::on_ranks(ranks, [&](const auto& honest) {
    const Mesh mesh(std::make_shared<test::SabotagedWorld>(honest, sabotage), parse_axes(axes));
    train::TrainConfig mine = config;
    if (reconfigure) reconfigure(mine, honest->rank());
    train::Session session(mine, data, mesh);
    verify::Subject subject = session.subject();
    if (meddle) meddle(session, subject, mesh);
    const verify::Deviations here = verify::compare(subject, reference);
    const std::lock_guard lock(mutex);
    total.merge(here);
  });
  return total;
}

constexpr double kTolerance = 1e-12;
// A real mistake is no rounding: it must stand out by orders of magnitude.
constexpr double kMistake = 1e-6;

double largest(const verify::Deviations& found) {
  return std::max({found.max_loss, found.max_gradient, found.max_parameter});
}

TEST(Verifier, HoldsWithoutAMistake) {
  for (const char* axes : {"dp=2", "tp=2", "dp=2,tp=2"}) {
    EXPECT_TRUE(deviations(axes, Sabotage::kNone).within(kTolerance)) << axes;
  }
}

TEST(Verifier, CatchesAMissingAllReduce) { EXPECT_GT(largest(deviations("dp=2", Sabotage::kMissingAllReduce)), kMistake); }

TEST(Verifier, CatchesADoubledAllReduce) { EXPECT_GT(largest(deviations("dp=2", Sabotage::kDoubledAllReduce)), kMistake); }

TEST(Verifier, CatchesASumWhereAnAverageIsMeant) {
  EXPECT_GT(largest(deviations("dp=2", Sabotage::kSumForAverage)), kMistake);
}

TEST(Verifier, CatchesSwappedRanks) { EXPECT_GT(largest(deviations("tp=2", Sabotage::kSwappedRanks)), kMistake); }

TEST(Verifier, CatchesAWrongShardOffsetAndNamesTheParameter) {
  const auto found = deviations("tp=2", Sabotage::kNone, [](train::Session& session, verify::Subject&, const Mesh& mesh) {
    if (mesh.rank() != 1) return;
    at::Tensor shard = local(session.workload().module->named_parameters()["layer0.linear.weight"]).detach();
    shard.copy_(shard.roll(1, 0));
  });
  EXPECT_GT(largest(found), kMistake);
  EXPECT_FALSE(found.worst_parameter.empty());
}

TEST(Verifier, CatchesAStaleParameterOnOneRank) {
  const auto found = deviations("dp=2", Sabotage::kNone, [](train::Session& session, verify::Subject& subject, const Mesh& mesh) {
    if (mesh.rank() != 1) return;
    subject.update = [&session, update = subject.update] {
      at::Tensor shard = local(session.workload().module->named_parameters()["layer1.linear.weight"]).detach();
      const at::Tensor before = shard.clone();
      update();
      shard.copy_(before);
    };
  });
  EXPECT_GT(largest(found), kMistake);
}

TEST(Verifier, CatchesAnUnsynchronisedSeed) {
  const auto found = deviations("dp=2", Sabotage::kNone, {},
                                [](train::TrainConfig& config, int rank) { config.seed += rank; });
  EXPECT_GT(largest(found), kMistake);
}

TEST(Verifier, CatchesADroppedLastBatch) {
  const auto found = deviations("dp=2", Sabotage::kNone, [](train::Session&, verify::Subject& subject, const Mesh&) {
    subject.forward_backward = [inner = subject.forward_backward](std::int64_t step) {
      return inner(std::min<std::int64_t>(step, 1));
    };
  });
  EXPECT_GT(largest(found), kMistake);
}

TEST(Verifier, CatchesAValueThatIsNotFinite) {
  const auto found = deviations("dp=2", Sabotage::kNone, [](train::Session& session, verify::Subject&, const Mesh&) {
    local(session.workload().module->parameters()[0]).detach().view({-1})[0].fill_(std::numeric_limits<double>::quiet_NaN());
  });
  EXPECT_TRUE(std::isinf(found.max_parameter));
}

constexpr double kDropout = 0.25;

train::TrainConfig mlp_with_dropout() {
  train::TrainConfig config = small_mlp();
  config.model.dropout = kDropout;
  return config;
}

/// Makes a mask of zeros and ones for `x`.
using MakeMask = std::function<at::Tensor(const at::Tensor& x)>;

/// The model with dropout as `make_mask` does it, instead of its own.
verify::Deviations with_masks(const std::string& axes, const std::function<MakeMask(const Mesh&)>& make_mask) {
  const auto meddle = [&](train::Session& session, verify::Subject&, const Mesh& mesh) {
    const auto layers = std::dynamic_pointer_cast<torch::nn::SequentialImpl>(session.workload().module);
    session.workload().forward = [layers, mask = make_mask(mesh)](at::Tensor x) {
      std::size_t hidden = layers->size() - 1;
      for (torch::nn::AnyModule& layer : *layers) {
        x = layer.forward(x);
        if (hidden-- > 0) x = x * mask(x).div(1 - kDropout);
      }
      return x;
    };
  };
  const auto without_its_own = [](train::TrainConfig& config, int) { config.model.dropout = 0; };
  return deviations(axes, Sabotage::kNone, meddle, without_its_own, mlp_with_dropout());
}

TEST(Verifier, HoldsUnderDropout) {
  for (const char* axes : {"dp=2", "tp=2", "dp=2,tp=2", "dp=3"}) {
    EXPECT_TRUE(deviations(axes, Sabotage::kNone, {}, {}, mlp_with_dropout()).within(kTolerance)) << axes;
  }
}

TEST(Verifier, HoldsWithMasksKeyedByTheGlobalIndex) {
  for (const char* axes : {"dp=2", "tp=2"}) {
    const auto found = with_masks(axes, [](const Mesh&) {
      return [](const at::Tensor& x) { return at::empty_like(x.detach()).bernoulli_(1 - kDropout); };
    });
    EXPECT_TRUE(found.within(kTolerance)) << axes;
  }
}

TEST(Verifier, CatchesMasksKeyedByTheLocalIndex) {
  for (const char* axes : {"dp=2", "tp=2"}) {
    const auto found = with_masks(axes, [](const Mesh& mesh) {
      return [&mesh, draw = std::make_shared<std::uint64_t>(0)](const at::Tensor& x) {
        const at::Tensor mask = at::empty_like(local(x.detach()));
        tensor::Box shard;
        for (const std::int64_t size : mask.sizes()) {
          shard.whole.push_back(size);
          shard.extents.push_back({0, size});
        }
        tensor::fill_bernoulli(mask, shard, {random_state(mesh).seed, (*draw)++}, 1 - kDropout);
        return from_local(mask, mesh, placements(x), x.sizes());
      };
    });
    EXPECT_GT(largest(found), kMistake) << axes;
  }
}

TEST(Verifier, CatchesTheSameMaskOnEveryStep) {
  const auto found = deviations(
      "dp=2", Sabotage::kNone,
      [](train::Session&, verify::Subject& subject, const Mesh& mesh) {
        subject.forward_backward = [&mesh, inner = subject.forward_backward](std::int64_t step) {
          manual_seed(mesh, random_state(mesh).seed);
          return inner(step);
        };
      },
      {}, mlp_with_dropout());
  EXPECT_GT(largest(found), kMistake);
}

TEST(AllMeshes, FactoriseEveryWorldSizeOverTheAxes) {
  // Ordered factorisations into four factors: 1, 4, 4, 10, 4, 16, 4, 20 for 1..8 ranks.
  EXPECT_EQ(verify::all_meshes(8).size(), 1U + 4 + 4 + 10 + 4 + 16 + 4 + 20);
  EXPECT_TRUE(verify::all_meshes(1).front().empty());
}

TEST(Verdict, WritesTheContractsFields) {
  const std::string line = verify::format_json({.mesh = "dp_replicate=2",
                                                .model = "mlp",
                                                .precision = "fp64",
                                                .steps = 3,
                                                .deviations = {1e-16, 2e-16, 3e-16, "a.weight"},
                                                .tolerance = 1e-12,
                                                .replicated_fallbacks = {},
                                                .gathers = {}});
  EXPECT_EQ(line,
            "{\"mesh\":\"dp_replicate=2\",\"model\":\"mlp\",\"precision\":\"fp64\",\"steps\":3,"
            "\"max_loss_deviation\":1e-16,\"max_grad_deviation\":2e-16,\"max_param_deviation\":3e-16,"
            "\"worst_parameter\":\"a.weight\",\"tolerance\":1e-12,\"holds\":true,\"replicated_fallbacks\":{},\"gathers\":{}}");
}

}  // namespace
}  // namespace tessera
