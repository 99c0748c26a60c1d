// CPU kernels are compiled once per instruction set; the loader picks one when the library loads.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#define SEGDET_SIMD __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define SEGDET_SIMD
#endif

// For the one template that the variants of a kernel share: inlined, so compiled for each of them.
#define SEGDET_INLINE inline __attribute__((always_inline))
