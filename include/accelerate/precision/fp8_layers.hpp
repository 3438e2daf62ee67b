#pragma once

#include <torch/nn/modules/linear.h>

#include <accelerate/core/error.hpp>
#include <accelerate/core/log.hpp>
#include <accelerate/precision/fp8_linear.hpp>
#include <accelerate/precision/fp8_options.hpp>
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

namespace accelerate {

namespace precision {

/// A linear layer of a model, and why it does not run in fp8 if it does not.
struct Fp8Row {
    std::string name;
    int64_t in = 0, out = 0;
    std::string reason;  ///< empty: it runs in fp8
};

/// The fp8 layers of a model, in the order of registration.
template <class F>
void for_each_fp8_layer(torch::nn::Module& model, F&& f) {
    for (auto const& item : model.named_modules("", false))
        if (auto* layer = dynamic_cast<Fp8Layer*>(item.value().get()); layer != nullptr && layer->runs_in_fp8) f(item.key(), *layer);
}

/// Decides for each linear layer of a model whether it runs in fp8; in the order of registration.
inline std::vector<Fp8Row> choose_fp8_layers(torch::nn::Module& model, fp8_layers const& options) {
    std::vector<std::pair<Fp8Row, Fp8Layer*>> found;
    for (auto const& item : model.named_modules("", false)) {
        auto const* linear = item.value()->as<torch::nn::LinearImpl>();
        if (linear != nullptr) found.push_back({{item.key(), linear->options.in_features(), linear->options.out_features(), {}}, dynamic_cast<Fp8Layer*>(item.value().get())});
    }
    std::vector<Fp8Row> rows;
    for (size_t i = 0; i < found.size(); ++i) {
        auto& [row, layer] = found[i];
        // The rules of the GPU's kernels, also where they are emulated: what trains here must train there.
        if (layer == nullptr) row.reason = "a torch::nn::Linear; write acc::Linear<S>";
        else if (row.in % 16 != 0) row.reason = concat("in_features ", row.in, " is no multiple of 16");
        else if (row.out % 16 != 0) row.reason = concat("out_features ", row.out, " is no multiple of 16");
        else if (options.keep_first_and_last && i == 0) row.reason = "the first layer";
        else if (options.keep_first_and_last && i + 1 == found.size()) row.reason = "the last layer";
        else if (options.filter && !options.filter(row.name)) row.reason = "left out by the filter";
        if (layer != nullptr) layer->runs_in_fp8 = row.reason.empty();
        rows.push_back(std::move(row));
    }
    return rows;
}

/// The choice as a table; what `prepare` prints.
inline std::string fp8_table(std::vector<Fp8Row> const& rows) {
    size_t widest = 5;
    for (auto const& row : rows) widest = std::max(widest, row.name.size());
    auto const padded = [](std::string text, size_t width) { return text + std::string(width > text.size() ? width - text.size() : 0, ' '); };
    std::string text = "  " + padded("layer", widest) + "  " + padded("shape", 14) + "  runs in\n";
    for (auto const& row : rows)
        text += "  " + padded(row.name, widest) + "  " + padded(concat(row.out, " x ", row.in), 14) + "  " + (row.reason.empty() ? "fp8" : "bf16: " + row.reason) + "\n";
    return text;
}

/// Of the multiplications in linear layers, the share that runs in fp8.
inline double fp8_share(std::vector<Fp8Row> const& rows) {
    double all = 0, fp8 = 0;
    for (auto const& row : rows) {
        auto const work = static_cast<double>(row.in) * static_cast<double>(row.out);
        all += work;
        if (row.reason.empty()) fp8 += work;
    }
    return all > 0 ? fp8 / all : 0;
}

/// `prepare` of an fp8 policy: chooses, prints the table, and refuses (E_CONFIG) a model of which no layer runs in fp8.
/// `emulated`: not by fp8 units.
inline void prepare_fp8(torch::nn::Module& model, fp8_layers const& options, char const* recipe, bool emulated) {
    auto const rows = choose_fp8_layers(model, options);
    auto const chosen = std::count_if(rows.begin(), rows.end(), [](Fp8Row const& row) { return row.reason.empty(); });
    check(chosen > 0, code::config, "prepare: no layer of this model would run in fp8; use acc::Linear<S> with dimensions that are multiples of 16 in a model built by accelerator.make, or .fp8 = "
          "{.keep_first_and_last = false}, or another precision\n", fp8_table(rows));
    log::info("fp8, ", recipe, ": ", chosen, " of ", rows.size(), " linear layers, ", std::lround(100 * fp8_share(rows)), " % of their multiplications", emulated ? " (emulated: rounded to fp8, multiplied in fp32)" : "", "\n",
              fp8_table(rows));
}

}  // namespace precision
}  // namespace accelerate
