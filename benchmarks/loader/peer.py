"""The loaders of Python: samples a second and the time to resume. Prints a JSON object a line.

  peer.py images|tokens    one process, or under torchrun all of its ranks (then Accelerate's only)
  peer.py resume           skip_first_batches and StatefulDataLoader at 10^3 to 10^5 batches
"""
import json
import os
import sys
import time

import torch
from accelerate import Accelerator, DataLoaderConfiguration, skip_first_batches
from torch.utils.data import DataLoader, Dataset, TensorDataset

torch.set_num_threads(1)
BATCH = 64


class Batched(Dataset):
    """A data set that fetches whole batches: the best setting."""

    def __init__(self, rows, labels):
        self.rows, self.labels = rows, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.rows[i], self.labels[i]

    def __getitems__(self, indices):
        index = torch.tensor(indices)
        return self.rows[index], self.labels[index]


def source(kind):
    if kind == "images":
        rows = torch.full((2**30 // 12288, 3, 32, 32), 0.5)
    else:
        rows = torch.full((2**30 // 2048, 1024), 7, dtype=torch.int32).to(torch.uint16)
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            rows = rows.view(torch.uint8)  # Gloo cannot send 16-bit integers; as many bytes
    return rows, torch.arange(len(rows))


def rate(loader, samples, ranks=1):
    begin, seen, warm = None, 0, samples // 8
    for rows, labels in loader:
        seen += len(labels) * ranks
        if begin is None and seen >= warm:
            begin, skipped = time.perf_counter(), seen
        if seen >= samples + warm:
            break
    return (seen - skipped) / (time.perf_counter() - begin)


def throughput(kind):
    rows, labels = source(kind)
    samples = 15000
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    whole = {"shuffle": True, "batch_size": BATCH}
    together = lambda dataset, **more: DataLoader(dataset, collate_fn=(lambda batch: batch), **whole, **more)

    def accelerated(loader, **more):
        return Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**more)).prepare(loader)

    arms = {
        "Accelerate": lambda: accelerated(DataLoader(TensorDataset(rows, labels), **whole)),
        "Accelerate, __getitems__": lambda: accelerated(together(Batched(rows, labels))),
        "Accelerate, dispatcher": lambda: accelerated(DataLoader(TensorDataset(rows, labels), **whole), dispatch_batches=True),
        "Accelerate, dispatcher, __getitems__": lambda: accelerated(together(Batched(rows, labels)), dispatch_batches=True),
    }
    if ranks == 1:
        from torchdata.stateful_dataloader import StatefulDataLoader

        arms |= {
            "DataLoader": lambda: DataLoader(TensorDataset(rows, labels), **whole),
            "DataLoader, __getitems__": lambda: together(Batched(rows, labels)),
            "StatefulDataLoader": lambda: StatefulDataLoader(TensorDataset(rows, labels), **whole),
            "Accelerate, 2 workers": lambda: accelerated(DataLoader(TensorDataset(rows, labels), num_workers=2, **whole)),
        }
    best = {}
    for _ in range(3):
        for name, make in arms.items():
            best[name] = max(best.get(name, 0), rate(make(), samples, ranks))
    if int(os.environ.get("RANK", 0)) == 0:
        print(json.dumps({"kind": kind, "ranks": ranks, "rates": best}), flush=True)
    if ranks > 1:
        torch.distributed.destroy_process_group()


class Numbers(Dataset):
    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return i


def resume():
    from torchdata.stateful_dataloader import StatefulDataLoader

    accelerator = Accelerator(cpu=True)
    for position in (1000, 10000, 100000):
        n = BATCH * (position + 100)
        prepared = accelerator.prepare(DataLoader(Numbers(n), batch_size=BATCH, shuffle=True))
        begin = time.perf_counter()
        next(iter(skip_first_batches(prepared, position)))
        skip = time.perf_counter() - begin
        loader = StatefulDataLoader(Numbers(n), batch_size=BATCH, shuffle=True)
        it = iter(loader)
        for _ in range(position):
            next(it)
        state = loader.state_dict()
        fresh = StatefulDataLoader(Numbers(n), batch_size=BATCH, shuffle=True)
        begin = time.perf_counter()
        fresh.load_state_dict(state)
        next(iter(fresh))
        print(json.dumps({"resume": position, "skip_first_batches_ms": skip * 1e3, "StatefulDataLoader_ms": (time.perf_counter() - begin) * 1e3}), flush=True)


resume() if sys.argv[1] == "resume" else throughput(sys.argv[1])
