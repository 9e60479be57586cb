// SPDX-License-Identifier: Apache-2.0
// TESSERA_CLONES: builds the function that follows for several vector widths; the loader picks the widest that runs.
#pragma once

// Sanitizers run after the loader's choice would be made, so instrumented builds keep the base version only.
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define TESSERA_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define TESSERA_CLONES
#endif
#define TESSERA_ALWAYS_INLINE inline __attribute__((always_inline))
