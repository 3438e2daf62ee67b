#pragma once

#include <accelerate/accelerator.hpp>
#include <accelerate/device/cpu.hpp>
#include <accelerate/device/cuda.hpp>
#include <accelerate/precision/bf16.hpp>
#include <accelerate/precision/fp16.hpp>
#include <accelerate/precision/fp8.hpp>
#include <accelerate/precision/fp32.hpp>
#include <accelerate/precision/tf32.hpp>
#include <accelerate/sharding/ddp.hpp>
#include <accelerate/sharding/fsdp.hpp>
#include <accelerate/sharding/none.hpp>

// What a build says (CMake: accelerate_policies(target DEVICE .. PRECISION .. SHARDING .. LOADER ..), or the cache variables of these
// names); each is a type.
#ifndef ACCELERATE_DEFAULT_DEVICE
#define ACCELERATE_DEFAULT_DEVICE ::accelerate::device::Cpu
#endif
#ifndef ACCELERATE_DEFAULT_PRECISION
#define ACCELERATE_DEFAULT_PRECISION ::accelerate::precision::Fp32
#endif
#ifndef ACCELERATE_DEFAULT_SHARDING
#define ACCELERATE_DEFAULT_SHARDING ::accelerate::sharding::Ddp<>
#endif
#ifndef ACCELERATE_DEFAULT_LOADER
#define ACCELERATE_DEFAULT_LOADER ::accelerate::loader::Stateful<>
#endif

namespace accelerate {

/// The policies that the build chose, so that one source becomes a program for each machine. An alias, not a class: translation
/// units with different choices go into one program.
using DefaultAccelerator = Accelerator<ACCELERATE_DEFAULT_DEVICE, ACCELERATE_DEFAULT_PRECISION, ACCELERATE_DEFAULT_SHARDING, ACCELERATE_DEFAULT_LOADER>;

}  // namespace accelerate
