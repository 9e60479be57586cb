// SPDX-License-Identifier: Apache-2.0
// Every collective of a machine-local group, over bytes.
#pragma once

#include "comm/exchange.h"
#include "comm/fingerprint.h"

namespace tessera::comm::detail {

/// One collective of one rank. W is the group's size; lists in rank order.
///
///   kind                          inputs                         outputs
///   all_reduce(_coalesced)        tensors, reduced in place      -
///   reduce                        one tensor, in place at root   -
///   broadcast                     one tensor                     -
///   all_gather                    one                            W of the input's size
///   gather                        one                            root: W of the input's size
///   scatter                       root: W of the output's size   one
///   reduce_scatter                W of the output's size         one
///   all_to_all                    W of any size                  W of any size
struct Operation {
  Call call;
  Pieces inputs;
  Pieces outputs;
};

/// Meets the peers and does it.
/// Throws  CommunicationError as Arrival::await does, and when an all-to-all's sizes do not match;
///         ShapeError when the dtype cannot be reduced, before the peers are met
void run_collective(Exchange& exchange, const Operation& operation);

/// The reduction of a list of tensors as one message; the other collectives are in collectives.cpp.
void run_all_reduce(Exchange& exchange, const Operation& operation);

}  // namespace tessera::comm::detail
