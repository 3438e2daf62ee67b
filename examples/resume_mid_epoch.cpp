// Stops in the middle of an epoch and goes on from a file: at the first sample that nobody consumed, also on another number of ranks.
//   ./resume_mid_epoch state.json        mpirun -n 2 ./resume_mid_epoch state.json        run it until it says that it is done
#include <accelerate.hpp>
#include <fstream>

namespace acc = accelerate;

struct Numbers {
    size_t size() const { return 100; }
    int64_t operator[](size_t i) const { return static_cast<int64_t>(i); }
};

int main(int argc, char** argv) {
    return acc::run([&] {
        acc::check(argc == 2, acc::code::config, "resume_mid_epoch: name a file for the state");
        std::filesystem::path const file = argv[1];
        acc::Accelerator<acc::device::Cpu, acc::precision::Fp32, acc::sharding::None, acc::loader::Stateful<>> accelerator;
        auto loader = accelerator.prepare(acc::data::Loader{Numbers(), {.batch_size = 4, .shuffle = true, .seed = 42}});

        acc::StateDict state;
        if (std::ifstream in(file); in) {
            in >> state.values;
            loader.load_state_dict(state);
            accelerator.print("going on in epoch", loader.epoch(), "behind sample", loader.consumed());
        }
        accelerator.wait_for_everyone();
        int64_t batches = 0;
        while (loader.epoch() < 2)
            for (auto& batch : loader) {
                auto const all = accelerator.gather_for_metrics(batch);
                accelerator.print("epoch", loader.epoch(), "samples", at::IntArrayRef(all.const_data_ptr<int64_t>(), static_cast<size_t>(all.numel())));
                if (++batches == 7) {  // pretend that time is up
                    if (accelerator.is_main_process()) std::ofstream(file) << loader.state_dict().values << '\n';
                    accelerator.print("stopped; run it again");
                    return;
                }
            }
        accelerator.on_main_process([&] { std::filesystem::remove(file); });
        accelerator.print("done");
    });
}
