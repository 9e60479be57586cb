// SPDX-License-Identifier: Apache-2.0
// Models as people write them, trained for two steps on every mesh, against one device: losses, gradients, parameters and
// buffers are equal, and nothing runs gathered and replicated but what its row names.
#include <gtest/gtest.h>

#include <algorithm>
#include <iostream>
#include <mutex>
#include <set>

#include "battery/battery.h"
#include "battery/known_refusals.h"
#include "battery/layouts.h"
#include "battery/trained.h"
#include "support/ranks.h"
#include "tessera/tensor/mesh_tensor.h"

namespace tessera::battery {
namespace {

const std::vector<Row>& rows() {
  static const std::vector<Row> kRows = [] {
    std::vector<Row> all;
    for (const auto& table : {decoder_rows(), encoder_rows(), recurrent_rows(), convolution_rows(), vision_rows(), image_rows(),
                              audio_and_time_rows(), other_rows()})
      all.insert(all.end(), table.begin(), table.end());
    return all;
  }();
  return kRows;
}

const KnownRefusal* known(const std::string& model, const std::string& layout) {
  const auto& table = known_refusals();
  const auto found = std::find_if(table.begin(), table.end(), [&](const KnownRefusal& entry) {
    return entry.model == model && entry.layout == layout;
  });
  return found == table.end() ? nullptr : &*found;
}

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

/// What ranks say is wrong with a layout, the first of them; and which operators fell back.
struct Outcome {
  std::mutex mutex;
  std::string failure;
  std::set<std::string> fallbacks;
};

void train_and_compare(const Row& row, const Layout& layout, const Trained& expected, Outcome& outcome) {
  test::on_mesh(layout.axes, [&](const Mesh& mesh) {
    std::string failure;
    try {
      failure = difference(expected, train_on(row, mesh, layout.plan, layout.options));
    } catch (const std::exception& error) {
      failure = first_line(error.what());
    }
    const std::lock_guard lock(outcome.mutex);
    if (outcome.failure.empty()) outcome.failure = failure;
    for (const auto& [name, count] : replicated_fallbacks(mesh)) outcome.fallbacks.insert(name);
  });
}

class Battery : public testing::TestWithParam<std::size_t> {
 protected:
  void SetUp() override {
    if (!test::has_device_of_ranks()) GTEST_SKIP() << "no GPU here";
    torch::set_default_dtype(caffe2::TypeMeta::Make<double>());
  }
};

TEST_P(Battery, TrainsOnMeshesAsOnOneDevice) {
  const Row& row = rows()[GetParam()];
  std::map<int, Trained> alone;
  Outcome all;
  for (const Layout& layout : layouts_of(row)) {
    Trained& expected = alone[layout.options.microbatches];
    if (expected.losses.empty()) expected = train_alone(row, layout.options);
    Outcome outcome;
    train_and_compare(row, layout, expected, outcome);
    all.fallbacks.merge(outcome.fallbacks);
    const KnownRefusal* entry = known(row.name, layout.name);
    if (entry == nullptr) {
      EXPECT_EQ(outcome.failure, "") << row.name << " on " << layout.name;
    } else {
      EXPECT_NE(outcome.failure, "") << row.name << " on " << layout.name << " holds now: take it from the table of refusals";
    }
  }
  std::set<std::string> named;
  for (const auto& [name, reason] : row.traits.fallbacks) named.insert(name);
  EXPECT_EQ(all.fallbacks, named) << "operators that ran replicated for want of a rule";
}

INSTANTIATE_TEST_SUITE_P(Models, Battery, testing::Range<std::size_t>(0, rows().size()),
                         [](const auto& chosen) { return rows()[chosen.param].name; });

TEST(BatteryTable, SaysWhatIsLeft) {
  std::set<std::string> trained;
  for (const Row& row : rows()) {
    for (const Layout& layout : layouts_of(row)) trained.insert(row.name + " on " + layout.name);
  }
  for (const KnownRefusal& entry : known_refusals()) {
    EXPECT_EQ(trained.count(entry.model + " on " + entry.layout), 1U) << entry.model << " is not trained on " << entry.layout;
    std::cout << entry.model << " on " << entry.layout << ": " << entry.reason << "\n";
  }
  std::cout << known_refusals().size() << " of " << trained.size() << " do not hold yet\n";
}

}  // namespace
}  // namespace tessera::battery
