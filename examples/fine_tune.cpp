// Fine-tunes a model from files: a body that was trained elsewhere, under other names, and a new head. The parameters are sharded from the start:
// no rank ever holds more than its share, and each reads only its share of the files.
//   mpirun -n 2 ./fine_tune                      makes files of its own first
//   mpirun -n 2 ./fine_tune FOLDER               takes those of a folder: one safetensors file, or several with an index
#include <torch/torch.h>

#include <accelerate.hpp>

namespace acc = accelerate;
using Run = acc::Accelerator<acc::device::Cpu, acc::precision::Fp32, acc::sharding::Fsdp<>, acc::loader::Stateful<>>;

template <class S = acc::Plain>
struct Body : torch::nn::Module {
    Body() : up(this, "up", 16, 64), down(this, "down", 64, 16) {}
    torch::Tensor forward(torch::Tensor const& x) { return x + down(torch::gelu(up(x))); }
    acc::Linear<S> up, down;
};

template <class S = acc::Plain>
struct Classifier : torch::nn::Module {
    explicit Classifier(int64_t classes) : body(this, "body"), head(this, "head", 16, classes) {}
    torch::Tensor forward(torch::Tensor const& x) { return head(body(x)); }
    acc::Unit<S, Body<S>> body;
    acc::Linear<S> head;
};

/// Points, and in which quarter of the plane their first two numbers are.
struct Quarters {
    size_t size() const { return 512; }
    std::pair<torch::Tensor, torch::Tensor> operator[](size_t i) const {
        auto const x = at::randn({16}, at::detail::createCPUGenerator(i));
        return {x, (x[0] > 0).to(torch::kLong) + 2 * (x[1] > 0).to(torch::kLong)};
    }
};

int main(int argc, char** argv) {
    return acc::run([&] {
        Run accelerator;
        std::filesystem::path folder = argc > 1 ? argv[1] : "fine_tune_pretrained";
        if (argc == 1 && accelerator.is_main_process()) {
            torch::manual_seed(1);
            acc::TensorMap pretrained;  // as another program would have called them
            for (auto const& [name, t] : acc::model_tensors(Body<>())) pretrained.insert("encoder." + name, t.detach());
            acc::save_file(pretrained, folder / "model.safetensors");
        }
        accelerator.wait_for_everyone();

        // strict = false: the head is not in the files and is initialised as ever. A shape that does not fit is an error all the same.
        auto net = accelerator.make<Classifier>(acc::from(folder, {.strict = false, .rename = {acc::rename_prefix("encoder.", "body.")}}), int64_t{4});
        auto [model, optimizer, train] = accelerator.prepare(net, acc::optim::AdamW{.lr = 1e-2}, acc::data::Loader{Quarters(), {.batch_size = 32, .shuffle = true}});
        for (int64_t epoch = 0; epoch < 3; ++epoch) {
            double loss_of_epoch = 0;
            for (auto& [x, y] : train) {
                auto window = accelerator.accumulate(model);
                auto const loss = torch::nn::functional::cross_entropy(model(x), y);
                accelerator.backward(loss);
                optimizer.step();
                optimizer.zero_grad();
                loss_of_epoch += accelerator.reduce(loss.detach(), "mean").item<double>() / static_cast<double>(train.size());
            }
            accelerator.print("epoch", epoch, "loss", loss_of_epoch);
        }
        // Several files with an index, as Python's from_pretrained reads them; one where it is small enough.
        accelerator.save_model(model, "fine_tune_out", {.max_shard_size = "4KB"});
        if (accelerator.is_main_process())
            for (auto const& [name, t] : acc::load_file("fine_tune_out")) accelerator.print(name, t.sizes());
    });
}
