#pragma once
// Everything, and LibTorch's own API with it. A file that wants less includes single headers of accelerate/.

#include <torch/torch.h>

