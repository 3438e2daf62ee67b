"""Python's optimizer phase: peer.py PARAMETERS THREADS fp32|fp16 ROUNDS; a JSON line for each setting of AdamW."""
import json
import statistics
import sys
import time

import torch

TENSORS, LR, MAX_NORM = 100, 1e-3, 1.0
numel, threads, mode, rounds = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
torch.set_num_threads(threads)
torch.manual_seed(1)


class Arm:
    def __init__(self, **settings):
        self.parameters = [torch.nn.Parameter(torch.randn(numel // TENSORS)) for _ in range(TENSORS)]
        self.slopes = [torch.randn(numel // TENSORS) for _ in range(TENSORS)]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=LR, **settings)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=mode == "fp16")

    def loss(self):
        return sum((p * s).sum() for p, s in zip(self.parameters, self.slopes))

    def backward(self):
        loss = self.scaler.scale(self.loss())
        begin = time.perf_counter()
        loss.backward()
        spent = time.perf_counter() - begin
        self.optimizer.zero_grad()
        return spent

    def step(self):
        loss = self.scaler.scale(self.loss())
        begin = time.perf_counter()
        loss.backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.parameters, MAX_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return time.perf_counter() - begin

    def phase(self):
        alone = self.backward()
        return self.step() - alone


arms = {"Python, default": Arm(), "Python, foreach": Arm(foreach=True), "Python, fused": Arm(fused=True)}
times = {name: [] for name in arms}
for turn in range(-2, rounds):
    for name, arm in arms.items():
        spent = arm.phase()
        if turn >= 0:
            times[name].append(spent * 1e9 / numel)
for name, values in times.items():
    print(json.dumps({"arm": name, "ns": statistics.median(values)}))
