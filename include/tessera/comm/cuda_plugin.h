// SPDX-License-Identifier: Apache-2.0
// Loading libtessera_cuda.so: CUDA tensors and their transports, in builds and on machines that have them.
#pragma once

#include <map>
#include <string>

#include "tessera/comm/worlds.h"

namespace tessera::comm {

/// Loads the CUDA plug-in and with it LibTorch's CUDA operators, and returns the transports it brings:
///   "nccl"    ranks as processes, each with a GPU of its own
///   "thread"  ranks as threads, any number on one GPU, or on several that can read each other's memory
///
/// The plug-in is looked for beside libtessera, then on the loader's path. Later calls return the same.
/// Order    first in the program: LibTorch remembers it when it is asked about CUDA (by torch::manual_seed, say) and
///          there is none yet
/// Threads  any
/// Throws   ConfigError when there is no GPU or no plug-in, when the loader refuses the plug-in (with its reason), or
///          when it was built with another Tessera or LibTorch, or comes too late
[[nodiscard]] std::map<std::string, BackendMaker> load_cuda_makers();

}  // namespace tessera::comm
