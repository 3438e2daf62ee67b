#pragma once

#include <accelerate/precision/fp8_layers.hpp>
#include <cstdio>
#include <string>
#include <vector>

namespace accelerate::precision {

/// What fp8 did to a layer so far, on this rank.
struct Fp8Report {
    std::string name;
    Fp8Counts activation, weight, gradient;  ///< under `fp8{.counters = true}`
    double shadow_error = 0;                 ///< |fp8 - bf16| / |bf16| of its forwards, under `fp8{.shadow = true}`
};

/// A row for each fp8 layer of a model. Waits for the device.
inline std::vector<Fp8Report> fp8_report(torch::nn::Module& model) {
    std::vector<Fp8Report> rows;
    for_each_fp8_layer(model, [&](std::string const& name, Fp8Layer& layer) {
        auto const& watch = layer.state->watch;
        rows.push_back({name, watch.counts(Operand::Activation), watch.counts(Operand::Weight), watch.counts(Operand::Gradient), watch.error()});
    });
    return rows;
}

/// Begins counting anew.
inline void reset_fp8_report(torch::nn::Module& model) {
    for_each_fp8_layer(model, [](std::string const&, Fp8Layer& layer) { layer.state->watch.reset(); });
}

/// The report as a table, to print: shares of numbers that saturated and that became zero.
inline std::string fp8_report_table(std::vector<Fp8Report> const& rows) {
    size_t widest = 5;
    for (auto const& row : rows) widest = std::max(widest, row.name.size());
    auto const line = [&](std::string const& name, auto... cells) {
        auto text = "  " + name + std::string(widest - name.size(), ' ');
        ((text += "  " + std::string(cells.size() < 21 ? 21 - cells.size() : 0, ' ') + cells), ...);
        return text + "\n";
    };
    auto const share = [](int64_t part, int64_t all) {
        char text[16];
        std::snprintf(text, sizeof text, "%.3f %%", all > 0 ? 100.0 * static_cast<double>(part) / static_cast<double>(all) : 0.0);
        return std::string(text);
    };
    auto const cell = [&](Fp8Counts const& c) { return share(c.saturated, c.numbers) + ", " + share(c.underflowed, c.numbers); };
    auto text = line("layer", std::string("activations"), std::string("weights"), std::string("gradients"), std::string("from bf16"));
    for (auto const& row : rows) {
        char error[16];
        std::snprintf(error, sizeof error, "%.4f", row.shadow_error);
        text += line(row.name, cell(row.activation), cell(row.weight), cell(row.gradient), std::string(error));
    }
    return text;
}

}  // namespace accelerate::precision
