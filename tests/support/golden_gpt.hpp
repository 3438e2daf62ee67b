#pragma once
// The small GPT of tests/data/golden/README.md, its data set, and the recorded runs of Python Accelerate.

#include <torch/torch.h>

#include <accelerate/state/safetensors.hpp>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

namespace golden {

inline std::filesystem::path folder() { return std::filesystem::path(ACCELERATE_TEST_DATA) / "golden"; }

/// `torch.nn.Linear` as Python computes it: one fused linear. (LibTorch's C++ module adds the bias in another order.)
struct AffineImpl : torch::nn::Module {
    AffineImpl(int64_t in, int64_t out) : weight(register_parameter("weight", torch::zeros({out, in}))), bias(register_parameter("bias", torch::zeros({out}))) {}
    torch::Tensor forward(torch::Tensor const& x) { return at::linear(x, weight, bias); }
    torch::Tensor weight, bias;
};
TORCH_MODULE(Affine);

/// `Linear` is the holder of its linear layers.
template <class Linear>
struct Block : torch::nn::Module {
    explicit Block(int64_t d)
        : ln1(register_module("ln1", torch::nn::LayerNorm(torch::nn::LayerNormOptions({d})))), qkv(register_module("qkv", Linear(d, 3 * d))),
          proj(register_module("proj", Linear(d, d))), ln2(register_module("ln2", torch::nn::LayerNorm(torch::nn::LayerNormOptions({d})))),
          fc(register_module("fc", Linear(d, 4 * d))), out(register_module("out", Linear(4 * d, d))) {}

    torch::Tensor forward(torch::Tensor x) {
        auto const b = x.size(0), t = x.size(1), d = x.size(2);
        auto const parts = qkv(ln1(x)).split(d, 2);
        auto heads = [&](torch::Tensor const& v) { return v.view({b, t, 4, d / 4}).transpose(1, 2); };
        auto att = torch::matmul(heads(parts[0]), heads(parts[1]).transpose(-2, -1)) * 0.25;
        auto const mask = torch::ones({t, t}, torch::kBool).tril();
        att = torch::softmax(att.masked_fill(mask.logical_not(), -std::numeric_limits<float>::infinity()), -1);
        x = x + proj(torch::matmul(att, heads(parts[2])).transpose(1, 2).contiguous().view({b, t, d}));
        return x + out(torch::gelu(fc(ln2(x))));
    }

    torch::nn::LayerNorm ln1;
    Linear qkv, proj;
    torch::nn::LayerNorm ln2;
    Linear fc, out;
};

template <class Linear>
struct BasicGpt : torch::nn::Module {
    static constexpr int64_t vocab = 65, context = 32, width = 64, depth = 2;
    BasicGpt()
        : wte(register_module("wte", torch::nn::Embedding(vocab, width))), wpe(register_module("wpe", torch::nn::Embedding(context, width))),
          blocks(register_module("blocks", torch::nn::ModuleList())), ln_f(nullptr), head(nullptr) {
        for (int64_t i = 0; i < depth; ++i) blocks->push_back(std::make_shared<Block<Linear>>(width));
        ln_f = register_module("ln_f", torch::nn::LayerNorm(torch::nn::LayerNormOptions({width})));
        head = register_module("head", Linear(width, vocab));
    }
    torch::Tensor forward(torch::Tensor const& tokens) {
        auto x = wte(tokens) + wpe(torch::arange(tokens.size(1)));
        for (auto& block : *blocks) x = block->template as<Block<Linear>>()->forward(x);
        return head(ln_f(x));
    }
    /// The weights that every recorded run began with.
    void load_init() {
        torch::NoGradGuard no_grad;
        auto const weights = accelerate::load_file(folder() / "init.safetensors");
        for (auto& p : named_parameters()) p.value().copy_(weights.at(p.key()));
    }
    torch::nn::Embedding wte, wpe;
    torch::nn::ModuleList blocks;
    torch::nn::LayerNorm ln_f;
    Linear head;
};

struct GptImpl : BasicGpt<Affine> {
    GptImpl() { load_init(); }
};
TORCH_MODULE(Gpt);

struct Sample {
    torch::Tensor x, y;
};

/// Windows of 32 tokens and the 32 that follow by one.
class Tokens {
public:
    explicit Tokens(int64_t samples) : samples_(samples), tokens_(accelerate::load_file(folder() / "tokens.safetensors").at("tokens").to(torch::kLong)) {}
    size_t size() const { return static_cast<size_t>(samples_); }
    Sample operator[](size_t i) const {
        auto const begin = static_cast<int64_t>(i) * 32;
        return {tokens_.slice(0, begin, begin + 32), tokens_.slice(0, begin + 1, begin + 33)};
    }

private:
    int64_t samples_;
    torch::Tensor tokens_;
};

inline torch::Tensor loss(torch::Tensor const& logits, torch::Tensor const& target) {
    return torch::nn::functional::cross_entropy(logits.view({-1, GptImpl::vocab}), target.reshape({-1}));
}

/// A recorded run.
struct Record {
    explicit Record(std::string const& name) {
        std::ifstream in(folder() / (name + ".json"));
        auto const json = nlohmann::json::parse(in);
        for (auto const& l : json.at("micro_losses_by_rank")) losses.push_back(l.get<std::vector<double>>());
        lr = json.at("lr").get<std::vector<double>>();
        norms = json.at("grad_norm").get<std::vector<double>>();
        samples = json.at("n").get<int64_t>();
        batch = json.at("batch_per_rank").get<int64_t>();
    }
    std::vector<std::vector<double>> losses;  // [step][rank]
    std::vector<double> lr, norms;
    int64_t samples = 0, batch = 0;
};

}  // namespace golden
