// Trains a character-level GPT on real text, on as many ranks as mpirun starts:
//
//   mpirun -n 2 train_gpt [--text FILE_OR_FOLDER] [--out FOLDER] ...      (tools/demo does it all)
//
// By default the text is the header files of the LibTorch that the program was built with: megabytes of real C++ that are on
// every machine that has the library. Whole files are held out; the program fails unless it learns to predict them.
#include <accelerate.hpp>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <map>
#include <string>
#include <unistd.h>

namespace acc = accelerate;
namespace nn = torch::nn;

#ifndef TRAIN_GPT_TEXT
#define TRAIN_GPT_TEXT ""
#endif

struct Settings {
    std::string text = TRAIN_GPT_TEXT, out = "train_gpt_out";
    int64_t steps = 450, batch = 16, context = 128, width = 128, depth = 4, heads = 4, seed = 1337, accumulate = 1, megabytes = 12, checkpoint_every = 0;
    double lr = 2e-3, temperature = 0.8;
    int64_t sample = 200;
};

// ---- the model: everything below is a template over the strategy S, so that a policy may hold or compute its parts differently ----

struct Shape {
    int64_t vocabulary = 256, context = 128, width = 128, depth = 4, heads = 4;
};

template <class S = acc::Plain>
struct Block : nn::Module {
    explicit Block(Shape s)
        : heads(s.heads), norm1(register_module("norm1", nn::LayerNorm(nn::LayerNormOptions({s.width})))), qkv(this, "qkv", s.width, 3 * s.width),
          proj(this, "proj", s.width, s.width), norm2(register_module("norm2", nn::LayerNorm(nn::LayerNormOptions({s.width})))), up(this, "up", s.width, 4 * s.width),
          down(this, "down", 4 * s.width, s.width) {}

    torch::Tensor forward(torch::Tensor x) {
        x = x + attend(norm1(x));
        return x + down(torch::gelu(up(norm2(x))));
    }

private:
    torch::Tensor attend(torch::Tensor const& x) {
        auto const b = x.size(0), t = x.size(1), d = x.size(2);
        auto const parts = qkv(x).view({b, t, 3, heads, d / heads}).permute({2, 0, 3, 1, 4}).unbind(0);
        auto const y = at::scaled_dot_product_attention(parts[0], parts[1], parts[2], {}, 0.0, /*is_causal=*/true);
        return proj(y.transpose(1, 2).reshape({b, t, d}));
    }

    int64_t heads;
    nn::LayerNorm norm1;
    acc::Linear<S> qkv, proj;
    nn::LayerNorm norm2;
    acc::Linear<S> up, down;
};

template <class S = acc::Plain>
struct Gpt : nn::Module {
    explicit Gpt(Shape s)
        : tokens(this, "tokens", s.vocabulary, s.width), positions(this, "positions", s.context, s.width), blocks(this, "blocks", s.depth, s),
          norm(register_module("norm", nn::LayerNorm(nn::LayerNormOptions({s.width})))), head(this, "head", s.width, s.vocabulary) {
        torch::NoGradGuard no_grad;
        for (auto& p : named_parameters())
            if (p.value().dim() > 1) p.value().normal_(0, 0.02);
    }

    torch::Tensor forward(torch::Tensor const& x) {
        auto const where = torch::arange(x.size(1), x.options());
        return head(norm(blocks(tokens(x) + positions(where))));
    }

    acc::Unit<S, nn::Embedding> tokens, positions;
    acc::Layers<S, Block<S>> blocks;
    nn::LayerNorm norm;
    acc::Linear<S> head;
};

torch::Tensor loss_of(torch::Tensor const& logits, torch::Tensor const& target) {
    return nn::functional::cross_entropy(logits.flatten(0, 1), target.flatten());
}

// ---- the training loop: its type decides where and how it runs. The build chooses it (examples/CMakeLists.txt); unless it says
//      otherwise, it is acc::Accelerator<acc::device::Cpu, acc::precision::Fp32, acc::sharding::Ddp<>, acc::loader::Stateful<>> ----

using Run = acc::DefaultAccelerator;

/// Mean loss over the held-out windows of all ranks.
template <class Model, class Loader>
double evaluate(Run& accelerator, Model& model, Loader& held_out) {
    torch::NoGradGuard no_grad;
    model->eval();
    auto sums = torch::zeros({2}, torch::kDouble);
    for (auto& batch : held_out) {
        auto const n = static_cast<double>(batch.target.numel());
        sums[0] += loss_of(model(batch.input), batch.target).template item<double>() * n;
        sums[1] += n;
    }
    model->train();
    sums = accelerator.reduce(sums, "sum");
    return (sums[0] / sums[1]).item<double>();
}

template <class Model>
std::string generate(Model& model, acc::data::Vocabulary const& vocabulary, Settings const& settings) {
    torch::NoGradGuard no_grad;
    model.eval();
    auto ids = vocabulary.encode("\n").to(model.parameters().front().device());
    while (ids.size(0) <= settings.sample) {
        auto const window = ids.slice(0, std::max<int64_t>(0, ids.size(0) - settings.context));
        auto const logits = model.forward(window.unsqueeze(0))[0][-1].to(torch::kFloat);
        ids = torch::cat({ids, torch::multinomial(torch::softmax(logits / settings.temperature, -1), 1)});
    }
    return vocabulary.decode(ids);
}

/// A line that is written over on a terminal; twenty lines where stderr goes into a file.
class Progress {
public:
    Progress(bool shown, int64_t steps) : shown_(shown), steps_(steps) {}
    void show(int64_t step, double loss, int64_t tokens) {
        if (!shown_ || (!terminal_ && step != steps_ && step % std::max<int64_t>(1, steps_ / 20) != 0)) return;
        auto const seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
        auto const filled = static_cast<int>(30 * step / steps_);
        std::fprintf(stderr, "%s[%s%s] %ld/%ld  loss %.3f  %.0f tokens/s  %.0f s left   %s", terminal_ ? "\r" : "", std::string(static_cast<size_t>(filled), '=').c_str(),
                     std::string(static_cast<size_t>(30 - filled), ' ').c_str(), step, steps_, loss, static_cast<double>(tokens) / seconds,
                     seconds / static_cast<double>(step) * static_cast<double>(steps_ - step), step == steps_ || !terminal_ ? "\n" : "");
        std::fflush(stderr);
    }

private:
    bool shown_, terminal_ = ::isatty(2) != 0;
    int64_t steps_;
    std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

int train(Settings const& settings) {
    Run accelerator{{.gradient_accumulation_steps = settings.accumulate, .project_dir = settings.out, .seed = settings.seed}};

    auto const corpus = acc::data::read_corpus(settings.text, {.extensions = {".h", ".hpp", ".txt", ".md", ".cpp"}, .held_out_every = 10, .max_bytes = settings.megabytes << 20});
    auto const vocabulary = acc::data::Vocabulary(corpus.train);
    acc::data::TextWindows const text(vocabulary, corpus.train, settings.context);
    acc::data::TextWindows const unseen(vocabulary, corpus.held_out, settings.context, /*limit=*/256);
    accelerator.print("text:", settings.text, "train", corpus.train.size(), "bytes, held out", corpus.held_out.size(), "bytes in", corpus.held_out_files.size(), "files;", vocabulary.size(),
                      "characters;", accelerator.num_processes(), "ranks");

    auto net = accelerator.make<Gpt>(Shape{vocabulary.size(), settings.context, settings.width, settings.depth, settings.heads});
    auto [model, optimizer, train, held_out, schedule] = accelerator.prepare(
        net, acc::optim::AdamW{.lr = settings.lr, .betas = {0.9, 0.95}, .weight_decay = 0.1, .no_decay_on_norms_and_biases = true},
        acc::data::Loader{text, {.batch_size = settings.batch, .shuffle = true, .seed = settings.seed, .drop_last = true}},
        acc::data::Loader{unseen, {.batch_size = settings.batch, .even_batches = false}},
        acc::schedule::Cosine{.warmup = acc::OptimizerSteps{std::min<int64_t>(20, settings.steps / 10)}, .total = acc::OptimizerSteps{settings.steps}});

    model->blocks->checkpoint_every(settings.checkpoint_every);

    acc::check(train.size() > 0, acc::code::data, "train_gpt: the text has ", text.size(), " windows of ", settings.context, " characters and one batch on every rank takes ",
               train.total_batch_size(), "; use more text, or a smaller --batch or --context");

    Progress progress(accelerator.is_main_process(), settings.steps);
    auto const tokens_a_step = settings.batch * settings.context * settings.accumulate * accelerator.num_processes();
    while (optimizer.steps() < settings.steps)
        for (auto& batch : train) {
            auto window = accelerator.accumulate(model);
            auto const loss = loss_of(model(batch.input), batch.target);
            accelerator.backward(loss);
            accelerator.clip_grad_norm(model, 1.0);
            optimizer.step();
            schedule.step();
            optimizer.zero_grad();
            if (accelerator.sync_gradients()) progress.show(optimizer.steps(), loss.template item<double>(), optimizer.steps() * tokens_a_step);
            if (optimizer.steps() == settings.steps) break;
        }

    auto const loss = evaluate(accelerator, model, held_out);
    auto const entropy = acc::data::unigram_entropy(corpus.held_out);
    accelerator.print("held-out loss", loss, "nats a character; unigram entropy of the held-out text", entropy, "; ratio", loss / entropy);
    accelerator.save_model(model, settings.out);
    if (accelerator.is_main_process()) {
        torch::manual_seed(static_cast<uint64_t>(settings.seed));
        accelerator.print("saved", std::filesystem::path(settings.out) / "model.safetensors");
        accelerator.print("a sample at temperature", settings.temperature, ":\n" + generate(*model, vocabulary, settings));
    }
    if (loss <= 0.75 * entropy) return 0;
    accelerator.print("the held-out loss is above 0.75 of the unigram entropy: this run has not learned");
    return 1;
}

char const* const help = R"(train_gpt: trains a character-level GPT on text, on every rank that mpirun starts

  mpirun -n 2 train_gpt [options]

  --text PATH        a text file or a folder of .h .hpp .cpp .md .txt files  (default: LibTorch's headers)
  --out FOLDER       where model.safetensors goes                            (train_gpt_out)
  --steps N          optimizer steps                                         (450)
  --batch N          windows a rank and micro-batch                          (16)
  --accumulate N     micro-batches an optimizer step                         (1)
  --context N        characters a window                                     (128)
  --width N          features                                                (128)
  --depth N          blocks                                                  (4)
  --heads N          attention heads                                         (4)
  --checkpoint_every N  recompute every N-th block in backward, to save memory  (0: none)
  --lr X             peak learning rate                                      (2e-3)
  --megabytes N      read at most this much text                             (12)
  --seed N           of weights and order                                    (1337)
  --sample N         characters of the generated sample                      (200)
  --temperature X    of the generated sample                                 (0.8)
)";

Settings parse(int argc, char** argv) {
    Settings s;
    std::map<std::string, std::string*> const texts{{"--text", &s.text}, {"--out", &s.out}};
    std::map<std::string, double*> const reals{{"--lr", &s.lr}, {"--temperature", &s.temperature}};
    std::map<std::string, int64_t*> const whole{{"--steps", &s.steps}, {"--batch", &s.batch}, {"--accumulate", &s.accumulate}, {"--context", &s.context}, {"--width", &s.width},
                                                {"--depth", &s.depth}, {"--heads", &s.heads}, {"--megabytes", &s.megabytes}, {"--seed", &s.seed}, {"--sample", &s.sample},
                                                {"--checkpoint_every", &s.checkpoint_every}};
    for (int i = 1; i < argc; i += 2) {
        std::string const name = argv[i];
        acc::check(texts.contains(name) || reals.contains(name) || whole.contains(name), acc::code::config, "train_gpt: unknown option ", name, "; see --help");
        acc::check(i + 1 < argc, acc::code::config, "train_gpt: ", name, " needs a value; see --help");
        std::string const value = argv[i + 1];
        try {
            if (auto text = texts.find(name); text != texts.end()) *text->second = value;
            else if (auto real = reals.find(name); real != reals.end()) *real->second = std::stod(value);
            else *whole.at(name) = std::stoll(value);
        } catch (std::logic_error const&) {
            throw acc::Error(acc::code::config, "train_gpt: " + name + " " + value + " is not a number");
        }
    }
    acc::check(s.steps > 0 && s.batch > 0 && s.context > 0 && s.depth > 0 && s.heads > 0 && s.width % s.heads == 0, acc::code::config,
               "train_gpt: sizes must be positive and --width divisible by --heads");
    return s;
}

int main(int argc, char** argv) {
    if (argc > 1 && (std::string(argv[1]) == "--help" || std::string(argv[1]) == "-h")) return std::fputs(help, stdout), 0;
    return acc::run([&] { return train(parse(argc, argv)); });
}
