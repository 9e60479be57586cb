// SPDX-License-Identifier: Apache-2.0
// From a configuration and a world to a session.
#include "cli/rank_session.h"

#include "cli/job_flags.h"
#include "tessera/base/error.h"
#include "tessera/base/log.h"
#include "tessera/launch/environment.h"

namespace tessera::cli {

train::Session make_session(const train::TrainConfig& config, const std::shared_ptr<comm::World>& world,
                            const train::SessionOptions& options) {
  std::optional<Mesh> mesh;
  const bool strict = launcher::read_switches(launcher::process_environment()).strict;
  if (!config.mesh.empty()) mesh.emplace(world, axes_of(config, world->size()), MeshOptions{.strict = strict});
  check<ConfigError>(mesh || world->size() == 1, "{} ranks, but no mesh; say how they are laid out, for instance --mesh dp={}",
                     world->size(), world->size());
  check<ConfigError>(mesh || config.plan.recompute == "none",
                     "recompute = \"{}\" without a mesh: plain tensors keep their activations; add --mesh dp=1",
                     config.plan.recompute);
  const train::Workload shape = train::make_workload_shape(config.model);
  const auto data = std::make_shared<const train::Dataset>(
      train::load_dataset(config.data, shape.input, static_cast<std::uint64_t>(config.seed)));
  train::Session session(config, data, mesh, options);
  if (world->rank() == 0) {
    base::info("{}: {} parameters, {}; mesh {} over {}", config.model.name,
               train::count_parameters(*session.workload().module), data->description,
               mesh ? mesh->to_string() : "none", world->transport());
  }
  return session;
}

}  // namespace tessera::cli
