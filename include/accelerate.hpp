#pragma once
// Everything, and LibTorch's own API with it. A file that wants less includes single headers of accelerate/.

#include <torch/torch.h>

#include <accelerate/accelerator.hpp>
#include <accelerate/core/run.hpp>
#include <accelerate/core/version.hpp>
#include <accelerate/data/corpus.hpp>
#include <accelerate/data/tensors.hpp>
#include <accelerate/data/text.hpp>
#include <accelerate/debug_launcher.hpp>
#include <accelerate/default_accelerator.hpp>
#include <accelerate/device/cpu.hpp>
#include <accelerate/device/cuda.hpp>
#include <accelerate/module/chain.hpp>
#include <accelerate/module/init_empty_weights.hpp>
#include <accelerate/module/layers.hpp>
#include <accelerate/module/linear.hpp>
#include <accelerate/module/tie_weights.hpp>
#include <accelerate/optim/combinators.hpp>
#include <accelerate/optim/curves.hpp>
#include <accelerate/optim/plateau.hpp>
#include <accelerate/optim/recipes.hpp>
#include <accelerate/partial_state.hpp>
#include <accelerate/precision/bf16.hpp>
#include <accelerate/precision/fp32.hpp>
#include <accelerate/precision/tf32.hpp>
#include <accelerate/sharding/ddp.hpp>
#include <accelerate/sharding/fsdp.hpp>
#include <accelerate/sharding/none.hpp>
#include <accelerate/state/load_model.hpp>
#include <accelerate/state/safetensors.hpp>
#include <accelerate/supported.hpp>
