// CPU kernels are compiled once per instruction set; the loader picks one when the library loads.
#pragma once

// Levels of the x86-64 psABI: v3 has AVX2 and FMA, v4 AVX-512. Sanitizers cannot start before the
// loader has picked.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && __GNUC__ >= 12 && \
    !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define SEGDET_SIMD __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
// Where the variants differ by more than the instruction set: one definition for each level.
#define SEGDET_SIMD_LEVEL(level) __attribute__((target(level)))
#else
#define SEGDET_SIMD
#endif

// GCC jams a loop over scattered addresses with the loop over their values before it vectorises the
// latter, and then it cannot: 4 times slower sums.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-loop-unroll-and-jam")
#endif

// For the one template that the variants of a kernel share: inlined, so compiled for each of them.
#define SEGDET_INLINE inline __attribute__((always_inline))
