#pragma once

#include <accelerate/optim/groups.hpp>
#include <accelerate/optim/operations.hpp>
#include <accelerate/optim/storage.hpp>

namespace accelerate::optim {

// A recipe says how to update, not what: `accelerator.prepare` binds it to the prepared parameters, so it cannot go stale.
// Members have Python's names and defaults. Those that every recipe has:
//   no_decay_on_norms_and_biases  weight_decay 0 for parameters of at most one dimension and for names that end in "bias"
//   groups                        other hyper-parameters by parameter name; the first match wins
//   operations                    `Operations::Torch` for the same bits as Python's `fused=True`
//   storage                       states in bf16, stochastic rounding
//   ema_decay                     > 0: a running average of the weights, `average = ema_decay * average + (1 - ema_decay) * weights` after
//                                 each update, from the weights at the first; see `Optimizer::average_parameters`. 4 bytes a parameter
//   parameters                    by name, those that it updates; empty: all. The rest is another optimizer's, which steps in the same
//                                 window, before `zero_grad`. Where some are left out, clearing the gradients is a pass of its own

/// Adam with decoupled weight decay (`torch.optim.AdamW`). State: two numbers per parameter, three with `amsgrad`.
struct AdamW {
    double lr = 1e-3;
    std::pair<double, double> betas = {0.9, 0.999};
    double eps = 1e-8;
    double weight_decay = 1e-2;
    bool amsgrad = false;
    bool maximize = false;
    bool no_decay_on_norms_and_biases = false;
    std::vector<ParameterGroup> groups = {};
    Operations operations = Operations::Fused;
    optimizer_storage storage = {};
    double ema_decay = 0;
    Callable<bool(std::string const&)> parameters = {};
};

/// Adam (`torch.optim.Adam`); its weight decay is L2: added to the gradient. State as AdamW's.
struct Adam {
    double lr = 1e-3;
    std::pair<double, double> betas = {0.9, 0.999};
    double eps = 1e-8;
    double weight_decay = 0;
    bool amsgrad = false;
    bool maximize = false;
    bool no_decay_on_norms_and_biases = false;
    std::vector<ParameterGroup> groups = {};
    Operations operations = Operations::Fused;
    optimizer_storage storage = {};
    double ema_decay = 0;
    Callable<bool(std::string const&)> parameters = {};
};

/// Stochastic gradient descent (`torch.optim.SGD`). State: one number per parameter if `momentum` is not 0, else none.
struct Sgd {
    double lr = 1e-3;
    double momentum = 0;
    bool nesterov = false;
    double weight_decay = 0;
    double dampening = 0;
    bool maximize = false;
    bool no_decay_on_norms_and_biases = false;
    std::vector<ParameterGroup> groups = {};
    Operations operations = Operations::Fused;
    optimizer_storage storage = {};
    double ema_decay = 0;
    Callable<bool(std::string const&)> parameters = {};
};

/// Adagrad (`torch.optim.Adagrad`). State: one number per parameter.
struct Adagrad {
    double lr = 1e-2;
    double lr_decay = 0;
    double eps = 1e-10;
    double weight_decay = 0;
    double initial_accumulator_value = 0;
    bool maximize = false;
    bool no_decay_on_norms_and_biases = false;
    std::vector<ParameterGroup> groups = {};
    Operations operations = Operations::Fused;
    optimizer_storage storage = {};
    double ema_decay = 0;
    Callable<bool(std::string const&)> parameters = {};
};

/// Lion (Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023): steps of equal size in the direction of the sign of a
/// running mean. State: one number per parameter. Wants an lr 3 to 10 times smaller, and a weight decay as much larger, than AdamW's.
struct Lion {
    double lr = 1e-4;
    std::pair<double, double> betas = {0.9, 0.99};
    double weight_decay = 0;
    bool maximize = false;
    bool no_decay_on_norms_and_biases = false;
    std::vector<ParameterGroup> groups = {};
    Operations operations = Operations::Fused;
    optimizer_storage storage = {};
    double ema_decay = 0;
    Callable<bool(std::string const&)> parameters = {};
};

}  // namespace accelerate::optim
