#pragma once

#include <accelerate/core/state_dict.hpp>
#include <accelerate/optim/schedule_length.hpp>
#include <optional>

namespace accelerate::schedule {

/// Multiplies the lr by `factor` when a metric has not improved for more than `patience` observations (torch's
/// `ReduceLROnPlateau`). Bound, it takes `.step(metric)`; give it the same metric on every rank.
struct Plateau {
    double factor = 0.1;
    int64_t patience = 10;
    double threshold = 1e-4;    ///< what counts as better: by this much
    bool relative = true;       ///< `threshold` is a fraction of the best metric so far
    bool maximize = false;      ///< the metric is to rise
    int64_t cooldown = 0;       ///< observations after a reduction that do not count
    double min = 0;             ///< as a fraction of the optimizer's lr
    double eps = 1e-8;          ///< a smaller change of the lr is not made

    static constexpr char const* kind = "Plateau";

    /// What it remembers.
    struct Memory {
        double scale = 1;  ///< the factor of the lr now
        std::optional<double> best = {};
        int64_t bad = 0;
        int64_t cooling = 0;
    };

    void validate() const {
        check(factor > 0 && factor < 1 && patience >= 0 && cooldown >= 0, code::config, "schedule::Plateau: .factor must be in (0, 1), .patience and .cooldown not negative");
    }

    void observe(Memory& m, double metric, double base_lr) const {
        if (better(m, metric)) m.best = metric, m.bad = 0;
        else ++m.bad;
        if (m.cooling > 0) --m.cooling, m.bad = 0;
        if (m.bad <= patience) return;
        auto const reduced = std::max(m.scale * factor, min);
        if ((m.scale - reduced) * base_lr > eps) m.scale = reduced;
        m.cooling = cooldown;
        m.bad = 0;
    }

private:
    bool better(Memory const& m, double metric) const {
        if (!m.best) return metric == metric;
        auto const margin = relative ? *m.best * threshold : threshold;
        return maximize ? metric > *m.best + margin : metric < *m.best - margin;
    }
};

}  // namespace accelerate::schedule
