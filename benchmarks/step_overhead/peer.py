"""The same step in raw Python and through Python Accelerate; prints the minimum of 40 interleaved rounds as JSON."""
import json
import time

import torch

torch.set_num_threads(1)
from accelerate import Accelerator  # noqa: E402


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Linear(64, 128), torch.nn.Linear(128, 10)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


torch.manual_seed(1)
x, y = torch.randn(32, 64), torch.randint(10, (32,))
loss_of = torch.nn.functional.cross_entropy


def raw(fused):
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=fused)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1)

    def step():
        loss_of(net(x), y).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    return step


def through(fused):
    accelerator = Accelerator(cpu=True)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=fused)
    net, optimizer, schedule = accelerator.prepare(net, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1))

    def step():
        with accelerator.accumulate(net):
            accelerator.backward(loss_of(net(x), y))
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()

    return step


arms = {"raw, default": raw(None), "Accelerate, default": through(None), "raw, fused": raw(True), "Accelerate, fused": through(True)}
best = dict.fromkeys(arms, 1e30)
for _ in range(40):
    for name, step in arms.items():
        begin = time.perf_counter()
        for _ in range(60):
            step()
        best[name] = min(best[name], (time.perf_counter() - begin) / 60 * 1e6)
print(json.dumps(best))
