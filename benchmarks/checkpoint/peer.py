"""Checkpoints by Python: peer.py FOLDER LAYERS WIDTH ROUNDS; a JSON line for each way and figure, the best of the rounds."""
import json
import os
import pathlib
import shutil
import sys
import time

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

folder, layers, width, rounds = pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:5])
torch.set_num_threads(1)
torch.manual_seed(1)
accelerator = Accelerator(cpu=True)
if not dist.is_initialized():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
net = torch.nn.Sequential(*(torch.nn.Linear(width, width, bias=False) for _ in range(layers)))
model, optimizer = accelerator.prepare(net, torch.optim.AdamW(net.parameters(), lr=1e-5, fused=True))
x = torch.randn(4, width)


def seconds_of(call):
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def step():
    def body():
        accelerator.backward(model(x).square().mean())
        optimizer.step()
        optimizer.zero_grad()
    return seconds_of(body)


def state():
    return {"model": net.state_dict(), "optimizer": {f"{i}.{k}": v for i, s in enumerate(optimizer.state_dict()["state"].values()) for k, v in s.items() if torch.is_tensor(v)}}


def flat():
    s = state()
    return {f"{part}.{name}": t for part, tensors in s.items() for name, t in tensors.items()}


def synced(path):
    """Makes what was written durable, which none of these ways does."""
    for file in [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def clear(path):
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)


pending = []
ways = {
    "Accelerate, save_state": lambda path: accelerator.save_state(str(path)),
    "torch.save": lambda path: torch.save(state(), path),
    "DCP": lambda path: dcp.save(state(), checkpoint_id=str(path)),
    "DCP, asynchronous": lambda path: pending.append(dcp.async_save(state(), checkpoint_id=str(path))),
    "safetensors, save_file": lambda path: save_file(flat(), path),
}
for _ in range(3):
    step()
best = {}


def note(way, what, value):
    best[way, what] = min(value, best.get((way, what), value))


for turn in range(rounds + 1):
    for way, save in ways.items():
        path = folder / way.replace(",", "").replace(" ", "_")
        clear(path)
        before = sorted(step() for _ in range(5))
        ordinary, usual = before[0], before[2]
        begin = time.perf_counter()
        call = seconds_of(lambda: save(path))
        call_and_step = call + step()
        slower = []
        while pending and not pending[0].done():
            slower.append(step() / usual)
        if pending:
            pending.pop().result()
        synced(path)
        durable = time.perf_counter() - begin if "asynchronous" in way else call + seconds_of(lambda: synced(path))
        if turn:
            note(way, "call and step", call_and_step)
            note("Python", "step", ordinary)
            note(way, "durable", durable)
            if len(slower) > 1:
                note(way, "slower while writing", sorted(slower[:-1])[(len(slower) - 1) // 2])
loads = {
    "Accelerate, save_state": lambda path: accelerator.load_state(str(path)),
    "torch.save": lambda path: torch.load(path, weights_only=True),
    "DCP": lambda path: dcp.load(state(), checkpoint_id=str(path)),
    "safetensors, save_file": lambda path: [t.clone() for t in load_file(path).values()],  # mapped: cloning reads every byte
}
for _ in range(rounds):
    for way, load in loads.items():
        note(way, "load, warm", seconds_of(lambda: load(folder / way.replace(",", "").replace(" ", "_"))))
for way in ways:
    best[way, "stall"] = best.pop((way, "call and step")) - best["Python", "step"]
for (way, what), value in best.items():
    print(json.dumps({"arm": way, "what": what, "value": value}))
