// SPDX-License-Identifier: Apache-2.0
// MKL's vector math must know its CPU before several threads use it.
#pragma once

namespace tessera::comm::detail {

/// Makes the first call of this process into MKL's vector math, which log, exp, sqrt and others of LibTorch use on the
/// CPU. That call detects the CPU, and for a moment shows other threads a number that, where the CPU has more than
/// AVX-512's first extensions, stands for functions of half the precision: ranks that are threads, all at the same
/// operator, would now and then get a log that is wrong by 4e-12 or an exp that is wrong by 3e-9.
/// https://github.com/pytorch/pytorch/issues/188792
/// Order  before threads compute; later calls are harmless
void settle_vector_math();

}  // namespace tessera::comm::detail
