// Wrong uses of the data room that must not compile (see cases.cpp).
#include <torch/torch.h>

#include <accelerate.hpp>

namespace acc = accelerate;
namespace data = acc::data;

struct Numbers {
    int64_t n = 8, at = 0;
    std::optional<int64_t> next() { return at < n ? std::optional(at++) : std::nullopt; }
};

void metrics([[maybe_unused]] torch::Tensor const& values) {
    acc::metrics::Mean mean;
    acc::metrics::WeightedMean weighted;
    acc::metrics::Accuracy accuracy;
    acc::metrics::Perplexity perplexity;
    mean.update(values), weighted.update(values, values), accuracy.update(values, values), perplexity.update(values);
#ifdef WRONG_mean_of_a_mean  // metrics::Mean: give one value for each sample (for example a loss with reduction none), not a mean of this rank's batch
    mean.update(0.5);
#endif
#ifdef WRONG_mean_of_an_item  // metrics::Mean: give one value for each sample (for example a loss with reduction none), not a mean of this rank's batch
    mean.update(values.mean().item<double>());
#endif
#ifdef WRONG_weight_of_a_batch  // metrics::WeightedMean: give one value and one weight for each sample, as tensors
    weighted.update(values, 8);
#endif
#ifdef WRONG_accuracy_of_a_batch  // metrics::Accuracy: give the prediction and the label of each sample, as tensors
    accuracy.update(0.9);
#endif
#ifdef WRONG_perplexity_of_a_mean  // metrics::Perplexity: give the loss of each token (cross_entropy with reduction none)
    perplexity.update(1.5);
#endif
}

void loaders() {
    data::Loader loader{Numbers()};
#ifdef WRONG_ordered_stream  // data::Loader: a stream comes in its own order; leave the order out
    data::Loader ordered{Numbers(), {}, data::order::Torch{}};
#endif
#ifdef WRONG_order  // data::Loader: the third argument is an order, with epoch(e, n)[position], or a batch sampler
    data::Loader no_order{std::vector<torch::Tensor>(3), {}, 7};
#endif
#ifdef WRONG_no_data  // data::Loader: a data set needs size() and operator[](size_t), a stream next() or open(part, parts)
    data::Loader no_data{3.5};
#endif
}

void coupled() {
#ifdef WRONG_coupled_without_coupling  // loader::Coupled: the data set must be a coupling's, as in data::Loader{coupling.stream(), {...}}
    acc::Accelerator<acc::device::Cpu, acc::precision::Fp32, acc::sharding::Ddp<>, acc::loader::Coupled<>> accelerator;
#else
    acc::Accelerator<acc::device::Cpu, acc::precision::Fp32, acc::sharding::Ddp<>, acc::loader::Stateful<>> accelerator;
#endif
    auto loader = accelerator.prepare(data::Loader{Numbers()});
}

void transformed() {
#ifdef WRONG_filter_of_indexed  // data::filter: an indexed data set must know its size; collect the indices that pass and use data::Subset
    auto even = data::filter(std::vector<int64_t>{1, 2, 3}, [](int64_t i) { return i % 2 == 0; });
#else
    auto even = data::filter(Numbers(), [](int64_t i) { return i % 2 == 0; });
#endif
    static_cast<void>(even);
}
