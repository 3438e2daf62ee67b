// Images from a memory-mapped file of fixed-size records, turned at random on worker threads, classified by a small network.
//   ./images        mpirun -n 2 ./images
// The file is made here (squares and crosses); the records of CIFAR-10 or of your camera are read the same way.
#include <accelerate.hpp>
#include <fstream>

namespace acc = accelerate;

/// 2000 grey images of 16 x 16, one byte a pixel: a square in even ones, a cross in odd ones.
void write_images(std::filesystem::path const& path) {
    std::ofstream out(path, std::ios::binary);
    for (int64_t i = 0; i < 2000; ++i) {
        acc::data::Random random(5, 0, i);
        std::vector<char> image(256);
        for (auto& pixel : image) pixel = static_cast<char>(random.below(40));
        auto const row = random.below(9), column = random.below(9);
        for (int64_t k = 0; k < 8; ++k) {
            auto const light = [&](int64_t r, int64_t c) { image[static_cast<size_t>((row + r) * 16 + column + c)] = 120; };
            if (i % 2 == 0) light(0, k), light(7, k), light(k, 0), light(k, 7);
            else light(k, k), light(k, 7 - k);
        }
        out.write(image.data(), 256);
    }
}

int main() {
    return acc::run([] {
        acc::Accelerator<acc::device::Cpu, acc::precision::Fp32, acc::sharding::Ddp<>, acc::loader::Stateful<>> accelerator;
        std::filesystem::path const path = acc::concat("images_", accelerator.num_processes(), ".bin");
        accelerator.on_main_process([&] { write_images(path); });
        accelerator.wait_for_everyone();

        acc::data::RecordFile const records(path, {.shape = {1, 16, 16}, .dtype = torch::kByte});
        struct Labelled {
            acc::data::RecordFile const& images;
            size_t size() const { return images.size(); }
            std::pair<torch::Tensor, int64_t> operator[](size_t i) const { return {images[i].to(torch::kFloat) / 128, static_cast<int64_t>(i % 2)}; }
        };
        auto const flipped = acc::data::map(Labelled{records}, [](std::pair<torch::Tensor, int64_t> sample, acc::data::Random& random) {
            if (random.below(2)) sample.first = sample.first.flip(2);
            if (random.below(2)) sample.first = sample.first.flip(1);
            return sample;
        });
        auto [train_set, test_set] = acc::data::random_split(flipped, {0.8, 0.2}, 1);

        torch::manual_seed(1);
        namespace nn = torch::nn;
        nn::Sequential net{nn::Conv2d(nn::Conv2dOptions(1, 8, 3).padding(1)), nn::ReLU(), nn::MaxPool2d(2), nn::Conv2d(nn::Conv2dOptions(8, 16, 3).padding(1)), nn::ReLU(), nn::AdaptiveMaxPool2d(2), nn::Flatten(),
                           nn::Linear(64, 2)};
        auto [model, optimizer, train, test] = accelerator.prepare(net, acc::optim::AdamW{.lr = 3e-3}, acc::data::Loader{train_set, {.batch_size = 16, .shuffle = true, .seed = 1, .num_workers = 2}},
                                                                   acc::data::Loader{test_set, {.batch_size = 50}});
        while (train.epoch() < 3) {
            for (auto& [images, labels] : train) {
                auto window = accelerator.accumulate(model);
                accelerator.backward(torch::nn::functional::cross_entropy(model(images), labels));
                optimizer.step();
                optimizer.zero_grad();
            }
            torch::NoGradGuard no_grad;
            acc::metrics::Accuracy accuracy;
            for (auto& [images, labels] : test) accuracy.update(model(images), labels, test.valid());
            accelerator.print("epoch", train.epoch(), "accuracy", accuracy.compute(accelerator.comm()));
        }
    });
}
