#pragma once
// The only place that gives the ACCELERATE_WITH_* switches their defaults. A build (our CMake package, or -D on the command
// line) may set them to 1; a backend that is off leaves in its headers at most what says how to switch it on. A choice of backend always ends in a type, so two
// translation units built with different switches never share a symbol of different meaning.

#ifndef ACCELERATE_WITH_MPI
#define ACCELERATE_WITH_MPI 0
#endif
#ifndef ACCELERATE_WITH_CUDA
#define ACCELERATE_WITH_CUDA 0
#endif
#ifndef ACCELERATE_WITH_NCCL
#define ACCELERATE_WITH_NCCL 0
#endif

#ifdef __FINITE_MATH_ONLY__
static_assert(__FINITE_MATH_ONLY__ == 0, "accelerate: gradients, losses and files are looked through for NaN and infinity, which -ffast-math and -Ofast take for impossible; compile with -fno-finite-math-only behind them");
#endif
