#!/usr/bin/env python3
"""The golden model trained by Python Accelerate and by the library on this machine, case by case: losses, norms, learning rates.

  golden_python.py BINARY --python PYTHON [-- MPIRUN...]
      BINARY   tests/programs/golden_case.cpp, built
      PYTHON   has torch, accelerate and safetensors (benchmarks/peers makes one)
      MPIRUN   the words that start two ranks; without them cases of two ranks are left out

The recorded runs of tests/data/golden are three cases; these are the others that its README defines: accumulation, a short last
window, bf16, uneven ends, split batches. Tolerances are those of that README.
"""
import json
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
GOLDEN = HERE / "data" / "golden"
DEFAULTS = {"ranks": 1, "samples": 96, "batch": 8, "accumulation": 1, "epochs": 1, "bf16": False, "bits": False, "split": False, "even": True, "drop_last": False, "warmup": 2, "total": 20}
CASES = {
    "plain": {},
    "accumulation, short last window": {"samples": 88, "accumulation": 4, "epochs": 2},
    "uneven last batch": {"samples": 61, "epochs": 2},
    "drop_last": {"samples": 61, "drop_last": True},
    "bf16": {"samples": 48, "bf16": True},
    "bf16, accumulation": {"samples": 40, "bf16": True, "accumulation": 2},
    "bits": {"bits": True},
    "bits, accumulation": {"bits": True, "samples": 88, "accumulation": 4},
    "two ranks": {"ranks": 2},
    "two ranks, accumulation, short last window": {"ranks": 2, "samples": 112, "accumulation": 3, "epochs": 2},
    "two ranks, uneven end": {"ranks": 2, "samples": 61, "epochs": 2},
    "two ranks, 3 samples left": {"ranks": 2, "samples": 35, "epochs": 2},
    "two ranks, drop_last": {"ranks": 2, "samples": 61, "drop_last": True},
    "two ranks, split batches": {"ranks": 2, "samples": 64, "split": True},
    "two ranks, split batches, uneven end": {"ranks": 2, "samples": 61, "split": True, "epochs": 2},
    "two ranks, not even": {"ranks": 2, "samples": 60, "even": False},
    "two ranks, bf16": {"ranks": 2, "samples": 48, "bf16": True},
}


def peer(case):
    """Runs one case by Python Accelerate (in a process of the peers' Python) and prints it as the C++ program does."""
    import math

    import torch
    from accelerate import Accelerator, DataLoaderConfiguration
    from safetensors.torch import load_file

    torch.set_num_threads(1)

    class Block(torch.nn.Module):
        def __init__(self, d):
            super().__init__()
            self.ln1, self.qkv, self.proj = torch.nn.LayerNorm(d), torch.nn.Linear(d, 3 * d), torch.nn.Linear(d, d)
            self.ln2, self.fc, self.out = torch.nn.LayerNorm(d), torch.nn.Linear(d, 4 * d), torch.nn.Linear(4 * d, d)

        def forward(self, x):
            b, t, d = x.shape
            q, k, v = (part.view(b, t, 4, d // 4).transpose(1, 2) for part in self.qkv(self.ln1(x)).split(d, 2))
            att = torch.matmul(q, k.transpose(-2, -1)) * 0.25
            att = torch.softmax(att.masked_fill(~torch.ones(t, t, dtype=torch.bool).tril(), float("-inf")), -1)
            x = x + self.proj(torch.matmul(att, v).transpose(1, 2).contiguous().view(b, t, d))
            return x + self.out(torch.nn.functional.gelu(self.fc(self.ln2(x))))

    class Gpt(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.wpe = torch.nn.Embedding(65, 64), torch.nn.Embedding(32, 64)
            self.blocks = torch.nn.ModuleList(Block(64) for _ in range(2))
            self.ln_f, self.head = torch.nn.LayerNorm(64), torch.nn.Linear(64, 65)

        def forward(self, tokens):
            x = self.wte(tokens) + self.wpe(torch.arange(tokens.size(1)))
            for block in self.blocks:
                x = block(x)
            return self.head(self.ln_f(x))

    class Tokens(torch.utils.data.Dataset):
        tokens = load_file(GOLDEN / "tokens.safetensors")["tokens"].long()

        def __len__(self):
            return case["samples"]

        def __getitem__(self, i):
            return self.tokens[32 * i:32 * i + 32], self.tokens[32 * i + 1:32 * i + 33]

    def factor(s):  # transformers' get_cosine_schedule_with_warmup, counted in optimizer steps
        warmup, total = case["warmup"], case["total"]
        return s / warmup if s < warmup else 0.5 * (1 + math.cos(math.pi * (s - warmup) / (total - warmup)))

    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if case["bf16"] else "no", gradient_accumulation_steps=case["accumulation"],
                              dataloader_config=DataLoaderConfiguration(split_batches=case["split"], even_batches=case["even"]))
    net = Gpt()
    net.load_state_dict(load_file(GOLDEN / "init.safetensors"))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=case["bits"] or None, foreach=None if case["bits"] else False)
    loader = torch.utils.data.DataLoader(Tokens(), batch_size=case["batch"], drop_last=case["drop_last"])
    net, optimizer, loader = accelerator.prepare(net, optimizer, loader)
    losses, norms, rates, made = [], [], [], 0
    for _ in range(case["epochs"]):
        for x, y in loader:
            with accelerator.accumulate(net):
                for group in optimizer.param_groups:
                    group["lr"] = 1e-3 * factor(made)
                loss = torch.nn.functional.cross_entropy(net(x).view(-1, 65), y.reshape(-1))
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norms.append(accelerator.clip_grad_norm_(net.parameters(), 1.0).item())
                    made += 1
                rates.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
    everyone = [None] * accelerator.num_processes
    if accelerator.num_processes > 1:
        torch.distributed.all_gather_object(everyone, losses)
    else:
        everyone = [losses]
    if accelerator.is_main_process:
        print("RESULT " + json.dumps({"losses": everyone, "norms": norms, "lr": rates}))
    accelerator.wait_for_everyone()
    sys.stdout.flush()
    os._exit(0)  # Gloo's threads end some runs with an abort when Python takes them down


def distance(a, b):
    """Largest relative difference of two lists; infinite where they differ in length."""
    return max((abs(x - y) / max(abs(y), 1e-30) for x, y in zip(a, b)), default=0.0) if len(a) == len(b) else float("inf")


def main():
    arguments = sys.argv[1:]
    if arguments[0] == "--peer":
        return peer(json.loads(arguments[1]))
    mpirun = arguments[arguments.index("--") + 1:] if "--" in arguments else []
    binary, python = arguments[0], arguments[arguments.index("--python") + 1]
    environment = dict(os.environ, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive", OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", ACCELERATE_USE_CPU="true")
    failed = 0
    for name, changes in CASES.items():
        case = {**DEFAULTS, **changes}
        if case["ranks"] > 1 and not mpirun:
            print(f"{name:<44} left out: no MPI")
            continue
        text = json.dumps(case)
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if case["ranks"] > 1 else []
        results = []
        for command in ([python, *start, __file__, "--peer", text], [*(mpirun if case["ranks"] > 1 else []), binary, text]):
            done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            lines = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith(("RESULT {", "{"))]
            if done.returncode != 0 or not lines:
                print(done.stdout + done.stderr)
                sys.exit(f"{name}: {command[0]} failed")
            results.append(json.loads(lines[-1]))
        theirs, ours = results
        loss = max(distance(o, t) for o, t in zip(ours["losses"], theirs["losses"])) if len(ours["losses"]) == len(theirs["losses"]) else float("inf")
        norm, rate = distance(ours["norms"], theirs["norms"]), distance(ours["lr"], theirs["lr"])
        equal = sum(x == y for o, t in zip(ours["losses"], theirs["losses"]) for x, y in zip(o, t))
        count = sum(map(len, theirs["losses"]))
        low = case["bf16"]
        good = loss <= (2e-3 if low else 5e-6) and norm <= (2e-2 if low else 1e-5) and rate <= 1e-12 and (not case["bits"] or equal == count)
        failed += not good
        print(f"{name:<44} loss {loss:.1e}  norm {norm:.1e}  lr {rate:.1e}  {equal} of {count} losses bit-equal  {'ok' if good else 'FAILED'}", flush=True)
    return 1 if failed else 0


sys.exit(main())
