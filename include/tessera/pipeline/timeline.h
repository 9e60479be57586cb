// SPDX-License-Identifier: Apache-2.0
// When each action of a schedule runs if nothing but the schedule makes anybody wait, and a picture of it.
#pragma once

#include <string>
#include <vector>

#include "tessera/pipeline/schedule.h"

namespace tessera::pipeline {

/// Times of one micro-batch on one stage. A full backward takes input plus weight. Any unit does: results are in the
/// same one.
struct Costs {
  std::vector<double> forward_ms{1};          ///< one number for all stages, or one per stage
  std::vector<double> backward_input_ms{1};   ///< likewise
  std::vector<double> backward_weight_ms{1};  ///< likewise
  /// From the end of an action to the start of the one on another rank that needs its result. The sender goes on.
  double transfer_ms = 0;
};

struct Span {
  double start = 0;
  double end = 0;
  friend bool operator==(const Span&, const Span&) = default;
};

struct Timeline {
  std::vector<std::vector<Span>> spans;  ///< as Schedule::actions
  double makespan = 0;                   ///< end of the last action of all ranks
  std::vector<double> busy;              ///< per rank: sum of its actions
  std::vector<double> bubble;            ///< per rank: share of the makespan in which it is idle
  std::vector<double> idle_inside;       ///< per rank: idle time between its first and its last action

  /// Share of ranks x makespan in which a rank is idle.
  [[nodiscard]] double mean_bubble() const;
};

/// The earliest time of each action: a rank runs its row in order, an action starts when the rank is free and what it
/// needs has arrived. The schedule is one that passed validate(). Throws ConfigError for negative or missing costs, and
/// for a schedule that deadlocks.
///
/// Makespan  p ranks, m micro-batches, v chunks; F, I, W and B = I + W of a rank's whole share of the model, so
///           that one chunk takes 1/v of it; c = transfer_ms. Exact, and tested, under the conditions behind the
///           formulas: gpipe        (m+p-1)(F+B) + 2c(p-1)                                         arXiv:1811.06965
///           1f1b         (m+p-1)(F+B) + 2c((p-1)m/p + p-2)    c = 0 or p divides m > 1  arXiv:2104.04473
///           interleaved  m(F+B) + (p-1)(F+B)/v + 2c(pv-1)     m >= p; c = 0 or p divides m and c <= F/v     likewise
///           zb-h1        m(F+B) + (p-1) max(F+I-W, F, I)      m >= p, c = 0             arXiv:2401.10241
///           zb-h2        m(F+B) + (p-1) F                     m >= 2p-1, c = 0, F = I = W: no idle inside a rank
///           zbv          m(F+B) + (p-1) F/2                   likewise                  arXiv:2405.15362
///           dualpipev    m(F+B) + (p-1) F/2                   m >= 2p, c = 0, F = I = W, nothing overlapped
[[nodiscard]] Timeline ideal_timeline(const Schedule& schedule, const Costs& costs);

struct PictureOptions {
  int width = 100;      ///< characters a line may have; what does not fit is cut, and a line says so
  bool colour = false;  ///< ANSI colours, for terminals
};

/// Time from left to right, two lines per rank: what it does, and the micro-batch. A letter starts an action and '-'
/// goes on with it; two chunks differ by case, more have their numbers in a third line; '.' is idle. Lines below tell
/// what the letters are and how long a column is: the longest time of which everything is a multiple, or the shortest
/// action and rounded if that takes too many columns.
[[nodiscard]] std::string picture(const Schedule& schedule, const Timeline& timeline,
                                  const PictureOptions& options = {});

}  // namespace tessera::pipeline
