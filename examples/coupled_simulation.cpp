// Training inside a running simulation, without files: two ranks integrate a heat equation with Eigen and publish what they see, the
// others train a network on it as it arrives, and the trained network's predictions go back to the simulation.
//
//   mpirun -n 4 coupled_simulation        (2 producers, 2 trainers)
//
// The program fails unless the network predicts the next state five times better than "nothing changes".
#include <Eigen/Core>
#include <accelerate.hpp>
#include <accelerate/eigen.hpp>

namespace acc = accelerate;
using Device = acc::device::Cpu;
using Field = Eigen::Vector<float, 32>;

struct Step {
    torch::Tensor before, after;
};

/// A rod whose ends are held at 0: a step of diffusion.
Field diffuse(Field const& u) {
    Field next = u;
    for (int round = 0; round < 8; ++round) {
        Field const now = next;
        for (int i = 0; i < 32; ++i) next[i] += 0.4f * ((i > 0 ? now[i - 1] : 0) - 2 * now[i] + (i < 31 ? now[i + 1] : 0));
    }
    return next;
}

int main() {
    return acc::run([] {
        using World = Device::communicator;
        auto const world = World::world();
        acc::check(world.size() >= 2, acc::code::config, "coupled_simulation: start it on 2 ranks or more, as in mpirun -n 4 coupled_simulation");
        acc::data::Coupling<Step, World> coupling(world, {.producers = (world.size() + 1) / 2, .max_bytes = 1 << 16, .window = 200});

        if (coupling.is_producer()) {
            Field u = Field::Zero();
            acc::data::Random random(3, 0, world.rank());
            for (int step = 0; step < 3000; ++step) {
                if (step % 10 == 0)  // somebody heats the rod somewhere
                    for (int i = 0; i < 32; ++i) u[i] = static_cast<float>(random.uniform() - 0.5);
                Field next = diffuse(u);
                coupling.publish({acc::tensor_view(u), acc::tensor_view(next)});  // Eigen's own memory; it may change when this returns
                u = next;
            }
            coupling.finish();
            Field const asked = Field::LinSpaced(0, 1), truth = diffuse(asked);
            coupling.send(acc::tensor_of(asked), coupling.trainer());
            auto const answer = coupling.receive<torch::Tensor>(coupling.trainer());
            auto const error = (acc::eigen_map<Field>(answer) - truth).norm(), idle = (asked - truth).norm();
            acc::check(error < idle / 5, acc::code::data, "the network is off by ", error, ", no change at all by ", idle);
            if (coupling.producers().rank() == 0) std::printf("%lld samples of each producer; prediction off by %.4f, no change at all by %.4f\n", static_cast<long long>(coupling.published()), error, idle);
            return;
        }

        acc::Accelerator<Device, acc::precision::Fp32, acc::sharding::Ddp<>, acc::loader::Coupled<>> accelerator{{}, coupling.trainers()};
        torch::manual_seed(1);
        auto [model, optimizer, train] = accelerator.prepare(torch::nn::Linear(32, 32), acc::optim::AdamW{.lr = 1e-2, .weight_decay = 0}, acc::data::Loader{coupling.stream(), {.batch_size = 16, .num_workers = 1}});
        for (auto& batch : train) {
            auto window = accelerator.accumulate(model);
            accelerator.backward(torch::mse_loss(model(batch.before), batch.after));
            optimizer.step();
            optimizer.zero_grad();
        }
        torch::NoGradGuard no_grad;
        auto const trainers = world.size() - (world.size() + 1) / 2;
        for (auto producer = coupling.trainers().rank(); producer < (world.size() + 1) / 2; producer += trainers) coupling.send(model(coupling.receive<torch::Tensor>(producer)), producer);
    });
}
