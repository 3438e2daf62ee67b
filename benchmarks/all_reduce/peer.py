"""All-reduce of fp32 by Gloo, two processes (started by torchrun), default and other settings interleaved; JSON on rank 0.

The payloads are the arguments, in bytes; the first argument is the number of rounds.
"""
import datetime
import json
import os
import sys
import time

import torch
import torch.distributed as dist

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, store = dist.get_rank(), dist.distributed_c10d._get_default_store()


def gloo(name, threads):
    options = dist.ProcessGroupGloo._Options()
    options._devices = [dist.ProcessGroupGloo.create_device(interface="lo")]
    options._threads = threads
    options._timeout = datetime.timedelta(minutes=5)
    return dist.ProcessGroupGloo(dist.PrefixStore(name, store), rank, dist.get_world_size(), options)


# Also tried: pieces of 512 KB to 4 MB in flight together, and several devices; they are slower.
one, two = gloo("one", 1), gloo("two", 2)
arms = {
    "default": lambda t: dist.all_reduce(t),
    "loopback, 2 threads": lambda t: two.allreduce([t]).wait(),
    "loopback, 1 thread": lambda t: one.allreduce([t]).wait(),
}

rounds = int(sys.argv[1])
for payload in map(int, sys.argv[2:]):
    tensor = torch.zeros(payload // 4)
    calls = max(1, int(20000 / (payload / 1e3 + 500)))
    times = {name: [] for name in arms}
    for round in range(-1, rounds):
        for name, once in arms.items():
            dist.barrier()
            begin = time.perf_counter()
            for _ in range(calls):
                once(tensor)
            if round >= 0:
                times[name].append((time.perf_counter() - begin) / calls * 1e6)
    line = {"bytes": payload}
    for name, own in times.items():
        slower = torch.tensor(own, dtype=torch.float64)
        dist.all_reduce(slower, op=dist.ReduceOp.MAX)
        line[name] = [slower.median().item(), slower.min().item()]
    if rank == 0:
        print(json.dumps(line), flush=True)
dist.barrier()
os._exit(0)  # Gloo may abort where one process goes before the other
