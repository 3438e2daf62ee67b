#pragma once
// safetensors files: the whole of it.

#include <accelerate/state/load_file.hpp>
#include <accelerate/state/save_file.hpp>
