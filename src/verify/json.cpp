// SPDX-License-Identifier: Apache-2.0
// A verdict as a line of JSON.
#include <cmath>
#include <nlohmann/json.hpp>

#include "tessera/verify/equivalence.h"
#include "verify/json_fields.h"

namespace tessera::verify {
namespace {

nlohmann::ordered_json number(double value) {
  return std::isfinite(value) ? nlohmann::ordered_json(value) : nlohmann::ordered_json(nullptr);
}

}  // namespace

std::string format_json(const Verdict& verdict) {
  nlohmann::ordered_json line;
  line["mesh"] = verdict.mesh;
  line["model"] = verdict.model;
  line["precision"] = verdict.precision;
  line["steps"] = verdict.steps;
  line["max_loss_deviation"] = number(verdict.deviations.max_loss);
  line["max_grad_deviation"] = number(verdict.deviations.max_gradient);
  line["max_param_deviation"] = number(verdict.deviations.max_parameter);
  line["worst_parameter"] = verdict.deviations.worst_parameter;
  line["tolerance"] = verdict.tolerance;
  line["holds"] = verdict.holds();
  line["replicated_fallbacks"] = verdict.replicated_fallbacks;
  line["gathers"] = json_of(verdict.gathers);
  return line.dump();
}

}  // namespace tessera::verify
