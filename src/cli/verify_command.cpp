// SPDX-License-Identifier: Apache-2.0
// `tessera verify`: one device against meshes, from the same seed and data.
#include <algorithm>
#include <charconv>
#include <iostream>
#include <mutex>
#include <optional>

#include "cli/commands.h"
#include "cli/rank_job.h"
#include "comm/vector_math.h"
#include "tessera/base/error.h"
#include "tessera/base/log.h"
#include "tessera/comm/worlds.h"
#include "tessera/launch/environment.h"
#include "tessera/tensor/mesh_tensor.h"
#include "tessera/train/session.h"

namespace tessera::cli {
namespace {

struct VerifyFlags {
  JobFlags job;
  std::string meshes;
  std::optional<double> tolerance;
};

/// Plain SGD, because Adam divides gradients that are zero but for rounding (a key bias, say) by their own size and so
/// shows rounding as if it were a difference. A loss scale that does not overflow: what overflows in one sum over the
/// batch need not do so in parts of it.
const Defaults kVerifyDefaults{{"loss_scale", "256"},     {"steps", "3"},          {"precision", "fp64"},     {"ranks", "threads"},
                               {"optimizer.name", "sgd"}, {"optimizer.lr", "0.01"}, {"data.order", "sequential"}};

/// "all:8" -> 8.
int parse_all(const std::string& text) {
  int ranks = 0;
  const std::string_view digits = std::string_view(text).substr(std::min<std::size_t>(4, text.size()));
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), ranks);
  check<ConfigError>(text.starts_with("all:") && error == std::errc{} && end == digits.data() + digits.size() &&
                         ranks >= 1 && ranks <= 64,
                     "--meshes \"{}\"; allowed: all:N with N from 1 to 64, for instance all:8", text);
  return ranks;
}

/// Meshes to try: those the model allows among all of up to N ranks, or the configured one.
std::vector<std::vector<Axis>> chosen_meshes(const VerifyFlags& flags, const train::TrainConfig& config) {
  const train::Workload shape = train::make_workload_shape(config.model);
  const auto check_mesh = [&](const std::vector<Axis>& axes) {
    train::check_fits(config, axes, /*uneven_batches=*/true);
    (void)train::plan_of(config, shape, axes);
  };
  if (flags.meshes.empty()) {
    std::vector<Axis> axes = axes_of(config, launched_ranks());
    check_mesh(axes);
    return {axes};
  }
  check<ConfigError>(config.ranks == "threads", "--meshes tries many worlds in one process; use --ranks threads");
  std::vector<std::vector<Axis>> meshes;
  for (std::vector<Axis>& axes : verify::all_meshes(parse_all(flags.meshes))) {
    try {
      check_mesh(axes);
    } catch (const ConfigError&) {
      continue;
    }
    meshes.push_back(std::move(axes));
  }
  return meshes;
}

/// The reference and what ranks share of it.
struct Reference {
  std::shared_ptr<const train::Dataset> data;
  verify::Trace trace;
  double rounding = 0;  ///< what 16 bits change: the largest deviation of one device in fp32
};

Reference run_one_device(train::TrainConfig config) {
  config.plan = {};
  at::set_num_threads(static_cast<int>(config.threads_per_rank));
  load_device(config.device);
  comm::detail::settle_vector_math();
  // Of single precision, ten bits are otherwise rounded away in convolutions on a GPU.
  at::globalContext().setAllowTF32CuDNN(false);
  const train::Workload shape = train::make_workload_shape(config.model);
  Reference reference;
  reference.data = std::make_shared<const train::Dataset>(
      train::load_dataset(config.data, shape.input, static_cast<std::uint64_t>(config.seed)));
  // Dropout draws other numbers on plain tensors than on a mesh, so its reference is a mesh of one rank.
  std::optional<Mesh> mesh;
  if (config.model.dropout > 0) mesh.emplace(comm::make_single_world(c10::Device(config.device)), std::vector<Axis>{});
  train::Session session(config, reference.data, mesh);
  reference.trace = verify::record(session.subject(), config.steps);
  if (train::autocast_dtype(config.precision)) {
    config.precision = "fp32";
    train::Session exact(config, reference.data, mesh);
    const verify::Deviations rounded = verify::compare(exact.subject(), reference.trace);
    reference.rounding = std::max({rounded.max_loss, rounded.max_gradient, rounded.max_parameter});
  }
  return reference;
}

/// The largest deviation that any rank of the mesh saw; collective.
verify::Deviations merge_over_ranks(const verify::Deviations& mine, const Mesh& mesh) {
  at::Tensor values = at::tensor({mine.max_loss, mine.max_gradient, mine.max_parameter}, at::kDouble);
  values = values.to(mesh.device());
  mesh.everyone().all_reduce(values, comm::ReduceOp::kMax);
  return {values[0].item<double>(), values[1].item<double>(), values[2].item<double>(), mine.worst_parameter};
}

verify::Verdict verify_mesh(const VerifyFlags& flags, const train::TrainConfig& config, const std::vector<Axis>& axes,
                            const std::shared_ptr<comm::World>& world, const Reference& reference) {
  const Mesh mesh(world, axes, {.strict = launcher::read_switches(launcher::process_environment()).strict});
  train::Session session(config, reference.data, mesh);
  const verify::Deviations deviations = verify::compare(session.subject(), reference.trace);
  return {.mesh = format_axes(axes),
          .model = config.model.name,
          .precision = config.precision,
          .steps = config.steps,
          .deviations = merge_over_ranks(deviations, mesh),
          .tolerance = flags.tolerance.value_or(verify::default_tolerance(config.precision, reference.rounding)),
          .replicated_fallbacks = replicated_fallbacks(mesh),
          .gathers = gathers(mesh)};
}

void show(const verify::Verdict& verdict) {
  std::cout << fmt::format("{:<34} {:5}  loss {:.1e}  gradients {:.1e}  parameters {:.1e}{}{}\n", verdict.mesh,
                           verdict.holds() ? "holds" : "FAILS", verdict.deviations.max_loss,
                           verdict.deviations.max_gradient, verdict.deviations.max_parameter,
                           verdict.holds() ? "" : "  worst: " + verdict.deviations.worst_parameter,
                           verdict.replicated_fallbacks.empty() ? "" : "  with fallbacks")
            << std::flush;
}

int verify(const VerifyFlags& flags, const Invocation& invocation) {
  const train::TrainConfig config = read_config(flags.job, kVerifyDefaults);
  if (flags.job.print_config) {
    std::cout << train::format_toml(config);
    return 0;
  }
  check<ConfigError>(!flags.tolerance || *flags.tolerance >= 0, "--tolerance {}; allowed: a number from 0",
                     flags.tolerance.value_or(0));
  const auto meshes = chosen_meshes(flags, config);
  const bool threads = config.ranks == "threads";
  // Ranks that are threads share one reference; a process computes its own.
  std::optional<Reference> shared;
  std::optional<train::JsonLines> json;
  bool all_hold = true;
  if (threads) {
    base::info("{}: {} steps on one device, then on {} mesh{}", config.model.name, config.steps, meshes.size(),
               meshes.size() == 1 ? "" : "es");
    shared = run_one_device(config);
  }
  for (const std::vector<Axis>& axes : meshes) {
    const RankJob job{count_ranks(axes), invocation.words, flags.job, config};
    const int exit_code = run_ranks(job, [&](const std::shared_ptr<comm::World>& world) {
      const verify::Verdict verdict = threads ? verify_mesh(flags, config, axes, world, *shared)
                                              : verify_mesh(flags, config, axes, world, run_one_device(config));
      if (world->rank() != 0) return;
      all_hold = all_hold && verdict.holds();
      if (!json) json.emplace(flags.job.json);
      json->write(verify::format_json(verdict));
      if (flags.job.json != "-") show(verdict);
    });
    if (exit_code != 0) return exit_code;
  }
  return all_hold ? 0 : 1;
}

}  // namespace

Command add_verify(CLI::App& app, const Invocation& invocation) {
  CLI::App* command = app.add_subcommand("verify", "proves that a plan computes what one device computes");
  command->footer("\nExamples:\n"
                  "  tessera verify --model gpt --mesh dp=2,tp=2\n"
                  "  tessera verify --model cnn --precision fp64 --meshes all:8 --json -");
  const auto flags = std::make_shared<VerifyFlags>();
  add_job_flags(*command, flags->job);
  command->add_option("--meshes", flags->meshes, "all:N tries every mesh of up to N ranks that the model allows");
  command->add_option("--tolerance", flags->tolerance, "largest relative deviation (default 1e-12 in fp64, 1e-4 in fp32; in fp16 and bf16 twice what "
                                                          "one device in fp32 differs by)");
  return [flags, &invocation] { return verify(*flags, invocation); };
}

}  // namespace tessera::cli
