// What `Layers` of resident blocks adds to a hand-written loop over the same blocks, counted by callgrind (see run.py).
//   main loop ARM N    N forwards of one arm: hand or ours
#include <torch/torch.h>

#include <accelerate.hpp>
#include <string>
#include <vector>

namespace acc = accelerate;

namespace {

constexpr int64_t blocks = 12, width = 32;

template <class S = acc::Plain>
struct Block : torch::nn::Module {
    explicit Block(int64_t d) : up(this, "up", d, d) {}
    torch::Tensor forward(torch::Tensor x) { return x + torch::tanh(up(x)); }
    acc::Linear<S> up;
};

}  // namespace

int main(int argc, char** argv) {
    return acc::run([&] {
        acc::check(argc == 4 && std::string(argv[1]) == "loop", acc::code::config, "usage: main loop hand|ours N");
        torch::NoGradGuard no_grad;
        at::set_num_threads(1);
        torch::manual_seed(0);
        std::vector<std::shared_ptr<Block<>>> hand;
        for (int64_t i = 0; i < blocks; ++i) hand.push_back(std::make_shared<Block<>>(width));
        acc::Layers<acc::Plain, Block<>> const ours(blocks, width);
        auto const x = torch::randn({4, width});
        double sum = 0;
        for (int64_t i = std::stoll(argv[3]); i > 0; --i) {
            auto y = x;
            if (std::string(argv[2]) == "ours") y = ours(y);
            else
                for (auto const& block : hand) y = block->forward(y);
            sum += y.data_ptr<float>()[0];
        }
        acc::check(sum == sum, acc::code::non_finite, "not a number");
    });
}
