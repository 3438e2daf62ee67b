#!/usr/bin/env python3
"""Which samples Python Accelerate hands to each rank, and which the library does, sample by sample, on random cases.

  loader_python.py BINARY --python PYTHON [--cases N] [--seed S]
      BINARY   tests/programs/loader_indices.cpp, built
      PYTHON   has torch and accelerate (benchmarks/peers makes one)

Two kinds: a shuffled map-style loader with use_seedable_sampler (order::Torch here), and a stream (IterableDatasetShard).
Dispatching is compared by worked examples in loading.cpp, as Python's needs processes.
"""
import argparse
import json
import random
import subprocess
import sys


def peer(cases):
    """Prints what Accelerate gives, as the C++ program does. One process plays all ranks: a loader is prepared for each."""
    import torch
    from accelerate.data_loader import prepare_data_loader
    from accelerate.state import PartialState
    from torch.utils.data import DataLoader, IterableDataset

    PartialState()

    class Stream(IterableDataset):
        def __init__(self, n):
            self.n = n

        def __iter__(self):
            return iter(range(self.n))

    for kind, samples, batch_size, ranks, split, even, drop, seed, epochs in cases:
        for rank in range(ranks):
            if kind == "shard":
                torch.manual_seed(99)
                loader = DataLoader(list(range(samples)), batch_size=batch_size, shuffle=True, drop_last=bool(drop))
                prepared = prepare_data_loader(loader, num_processes=ranks, process_index=rank, split_batches=bool(split), even_batches=bool(even), use_seedable_sampler=True, data_seed=seed,
                                               put_on_device=False, dispatch_batches=False)
            else:
                loader = DataLoader(Stream(samples), batch_size=batch_size, drop_last=bool(drop))
                prepared = prepare_data_loader(loader, num_processes=ranks, process_index=rank, split_batches=bool(split), even_batches=bool(even), put_on_device=False, dispatch_batches=False)
            text = ""
            for _ in range(epochs):
                text += ";".join(",".join(map(str, batch.tolist())) for batch in prepared) + "|"
            print(text)


def draw(choose):
    kind = choose.choice(["shard", "shard", "stream"])
    ranks = choose.randint(1, 4)
    split = int(choose.random() < 0.4)
    batch_size = choose.randint(1, 6) * (ranks if split else 1)
    # Accelerate's streams know no even_batches: they are always filled up. On one rank nothing is.
    even = 1 if kind == "stream" else int(choose.random() < 0.6)
    return [kind, choose.randint(1, 70), batch_size, ranks, split, even, int(choose.random() < 0.3), choose.randint(0, 2**31), 3 if kind == "shard" else 1]


def main():
    if len(sys.argv) == 2 and sys.argv[1] == "--peer":
        return peer(json.load(sys.stdin))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--python", required=True)
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    choose = random.Random(options.seed)
    cases = [draw(choose) for _ in range(options.cases)]
    ours = subprocess.run([options.binary], input="".join(" ".join(map(str, case)) + "\n" for case in cases), capture_output=True, text=True, check=True).stdout.splitlines()
    theirs = subprocess.run([options.python, __file__, "--peer"], input=json.dumps(cases), capture_output=True, text=True)
    if theirs.returncode:
        sys.exit(theirs.stderr)
    theirs = theirs.stdout.splitlines()
    wrong, line = 0, 0
    for case in cases:
        for rank in range(case[3]):
            if line >= len(ours) or line >= len(theirs) or ours[line] != theirs[line]:
                wrong += 1
                print("differs:", *case, "rank", rank, "\n  python", theirs[line] if line < len(theirs) else None, "\n  ours  ", ours[line] if line < len(ours) else None)
            line += 1
    kinds = {kind: sum(case[0] == kind for case in cases) for kind in ("shard", "stream")}
    print(f"{len(cases)} cases ({kinds['shard']} shuffled over 3 epochs, {kinds['stream']} streams), {line} ranks: {line - wrong} equal, {wrong} differ")
    sys.exit(1 if wrong else 0)


main()
