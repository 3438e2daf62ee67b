#pragma once

#include <accelerate/module/op_precision.hpp>
#include <accelerate/non_finite.hpp>
#include <accelerate/precision/fp8_options.hpp>
#include <accelerate/precision/grad_scaler.hpp>
#include <accelerate/sharding/window.hpp>
#include <cstdint>
#include <filesystem>
#include <optional>

namespace accelerate {

/// Run-time options of an Accelerator; what changes its type is a template argument.
struct accelerator_options {
    int64_t gradient_accumulation_steps = 1;        ///< micro-batches a window; the loss is divided by it
    std::filesystem::path project_dir = {};         ///< where checkpoints, logs and trackers of the run go
    bool sync_with_dataloader = true;               ///< the last batch of a loader closes the window
    ShortWindow short_window = ShortWindow::Divide; ///< what a shorter last window is divided by
    bool step_scheduler_with_optimizer = true;      ///< false: every `schedule.step()` counts one, for those who step by epoch
    int64_t seed = 0;                               ///< of the initial weights that `make` draws
    std::optional<int64_t> data_seed = {};          ///< seed of the loaders that `prepare` is given, in place of their own
    bool keep_gradients = false;                    ///< `p.grad()` stays after a step until `zero_grad`, as in Python; costs a pass over it
    NonFinite non_finite = NonFinite::skip();       ///< what becomes of a step whose gradients have a NaN or an infinity
    grad_scaler_options grad_scaler = {};           ///< of precisions that scale gradients
    accelerate::autocast_ops autocast_ops = {};     ///< operations that a precision's scope is to treat otherwise than LibTorch's lists say
    fp8_layers fp8 = {};                            ///< which layers run in fp8 under `precision::Fp8`
    bool checkpoint_on_signal = true;               ///< where there is a `project_dir`: SIGTERM, SIGINT and SIGUSR1 save and end with code 75
    int64_t total_limit = 0;                        ///< checkpoints that automatic names keep, the newest; 0: all
    bool save_on_each_node = false;                 ///< for disks that nodes do not share: each writes checkpoints and models of its own
    double timeout_s = 600;                         ///< how long a rank waits for another before it says whom it misses
};

}  // namespace accelerate
