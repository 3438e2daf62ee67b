"""The same step by Python Accelerate with Gloo, two processes (started by torchrun): default DDP, and bucket views; JSON on rank 0."""
import json
import os
import sys
import time

import torch

torch.set_num_threads(1)
from accelerate import Accelerator  # noqa: E402
from accelerate.utils import DistributedDataParallelKwargs  # noqa: E402

width, rounds = int(sys.argv[1]), int(sys.argv[2])


class Mlp(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.ModuleList(torch.nn.Linear(width, width, bias=False) for _ in range(5))

    def forward(self, x):
        for layer in self.net:
            x = torch.relu(layer(x))
        return x


def arm(views, fused):
    accelerator = Accelerator(cpu=True, kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=views)])
    net = Mlp()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=fused)
    net, optimizer = accelerator.prepare(net, optimizer)
    x, y = torch.randn(16, width), torch.randn(16, width)

    def step():
        accelerator.wait_for_everyone()
        begin = time.perf_counter()
        with accelerator.accumulate(net):
            accelerator.backward(torch.nn.functional.mse_loss(net(x), y))
            optimizer.step()
            optimizer.zero_grad()
        return (time.perf_counter() - begin) * 1e3

    return accelerator, step


arms = {"default": arm(False, None), "best": arm(True, True)}
times = {name: [] for name in arms}
for round in range(-2, rounds):
    for name, (_, step) in arms.items():
        ms = step()
        if round >= 0:
            times[name].append(ms)
found = {}
for name, t in times.items():  # a step takes as long as its slower rank
    slower = torch.tensor(t, dtype=torch.float64)
    torch.distributed.all_reduce(slower, op=torch.distributed.ReduceOp.MAX)
    found[name] = [slower.median().item(), slower.min().item()]
if next(iter(arms.values()))[0].is_main_process:
    print(json.dumps(found), flush=True)
torch.distributed.barrier()
os._exit(0)  # Gloo may abort where one process goes before the other
