// SPDX-License-Identifier: Apache-2.0
// What was saved on one mesh is loaded on any other, bit for bit.
#include <gtest/gtest.h>

#include "checkpoint/programs.h"
#include "tessera/tensor/mesh_tensor.h"

namespace tessera {
namespace {

using test::contents;
using test::different;
using test::on_place;
using test::Place;
using test::Program;
using test::TemporaryFolder;

/// Uneven and empty shards among them: 14, 5 and 3 rows over 3, 4 and 7 ranks.
const std::vector<Place>& places() {
  static const std::vector<Place> kPlaces = {
      {"", ""},
      {"dp=2", ""},
      {"dp_shard=3", "1"},
      {"dp_shard=4", "2"},
      {"dp_shard=7", "3"},
      {"tp=2", "tp"},
      {"tp=4", "tp"},
      {"dp_shard=2,tp=2", "tp"},
      {"dp=2,dp_shard=2", "3"},
      {"pp=2", ""},
      {"pp=2,dp_shard=3", "3"},
      {"pp=2,dp=2,tp=2", "tp"},
  };
  return kPlaces;
}

std::string folder_for(const TemporaryFolder& folder, std::size_t index) {
  return (folder.path() / ("from" + std::to_string(index))).string();
}

TEST(MeshPairs, ReturnEveryBit) {
  const TemporaryFolder folder;
  Program original(std::nullopt, {}, 1);
  for (int i = 0; i < 3; ++i) original.update();
  const auto expected = contents(original);
  const std::string source = (folder.path() / "original").string();
  save(source, original.state);
  for (std::size_t from = 0; from < places().size(); ++from) {
    on_place(places()[from], [&](const std::optional<Mesh>& mesh) {
      Program program(mesh, places()[from], 2);
      load(source, program.state);
      EXPECT_EQ(different(expected, contents(program)), "") << places()[from].axes;
      save(folder_for(folder, from), program.state, {.block_bytes = 100});
    });
  }
  int pairs = 0;
  for (std::size_t from = 0; from < places().size(); ++from) {
    for (std::size_t to = 0; to < places().size(); ++to, ++pairs) {
      on_place(places()[to], [&](const std::optional<Mesh>& mesh) {
        Program program(mesh, places()[to], 3);
        load(folder_for(folder, from), program.state);
        EXPECT_EQ(different(expected, contents(program)), "")
            << places()[from].axes << " -> " << places()[to].axes << ", plan " << places()[to].plan;
      });
    }
  }
  EXPECT_EQ(pairs, 144);
}

TEST(MeshPairs, GoOnAsIfNothingHadHappened) {
  const TemporaryFolder folder;
  for (const Place& place : places()) {
    const std::string path = (folder.path() / ("of" + place.axes + place.plan)).string();
    on_place(place, [&](const std::optional<Mesh>& mesh) {
      Program before(mesh, place, 1);
      for (int i = 0; i < 2; ++i) before.update();
      save(path, before.state);
      Program after(mesh, place, 2);
      after.update();  // what it has is overwritten
      load(path, after.state);
      for (int i = 0; i < 3; ++i) before.update();
      for (int i = 0; i < 3; ++i) after.update();
      EXPECT_EQ(different(contents(before), contents(after)), "") << place.axes;
    });
  }
}

TEST(MeshPairs, EveryElementIsWrittenOnceAndByTurns) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "saved";
  std::int64_t wanted = 0;
  on_place({"dp=4", ""}, [&](const std::optional<Mesh>& mesh) {
    Program program(mesh, {"dp=4", ""}, 1);
    program.update();
    save(path, program.state);
    for (const auto& [name, tensor] : contents(program)) {
      const bool counts = tensor.dim() > 0 && name.find("again") == std::string::npos;
      if (mesh->rank() == 0 && counts) wanted += static_cast<std::int64_t>(tensor.nbytes());
    }
  });
  std::int64_t data = 0;
  const auto manifest = checkpoint::read_manifest(path);
  for (const auto& tensor : manifest.tensors) data += tensor.shape.empty() ? 0 : tensor.num_bytes();
  EXPECT_EQ(data, wanted);
  EXPECT_EQ(manifest.files.size(), 4U);
  EXPECT_EQ(manifest.aliases.at("model.again"), "model.tied");
}

TEST(MeshPairs, RandomNumbersGoOn) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "saved";
  test::on_mesh("dp=2", [&](const Mesh& mesh) {
    manual_seed(mesh, 7);
    const at::Tensor sample = distribute(torch::zeros({64}), mesh, {Shard(0)});
    (void)torch::rand_like(sample);
    State state;
    state.add("random", mesh);
    save(path, state);
    const at::Tensor expected = full(torch::rand_like(sample));
    manual_seed(mesh, 8);
    load(path, state);
    EXPECT_TRUE(torch::equal(full(torch::rand_like(sample)), expected));
  });
  auto generator = at::make_generator<at::CPUGeneratorImpl>(3);
  State state;
  state.add("generator", generator);
  save(folder.path() / "plain", state);
  const at::Tensor expected = torch::rand({8}, generator);
  load(folder.path() / "plain", state);
  EXPECT_TRUE(torch::equal(torch::rand({8}, generator), expected));
}

TEST(MeshPairs, SumsUnderWayAreSavedAsTheirValues) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "saved";
  test::on_mesh("dp=2", [&](const Mesh& mesh) {
    at::Tensor sum = from_local(torch::full({3}, 1.0 + mesh.rank()), mesh, {Partial()}, {3});
    State state;
    state.add("sum", sum);
    save(path, state);
  });
  at::Tensor value = torch::zeros({3});
  State state;
  state.add("sum", value);
  load(path, state);
  EXPECT_TRUE(torch::equal(value, torch::full({3}, 3.0)));
}

}  // namespace
}  // namespace tessera
