"""The model of examples/train_gpt.cpp under Python Accelerate: tokens a second as JSON."""
import argparse
import json
import time

import torch
from accelerate import Accelerator
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("device")
parser.add_argument("precision")
for name in ("vocabulary", "steps", "width", "depth", "batch", "context"):
    parser.add_argument(f"--{name}", type=int)
given = parser.parse_args()
heads = 4


class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.proj, self.up, self.down = nn.Linear(d, 3 * d), nn.Linear(d, d), nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, heads, d // heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(b, t, d))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Gpt(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(given.vocabulary, given.width), nn.Embedding(given.context, given.width)
        self.blocks = nn.Sequential(*(Block(given.width) for _ in range(given.depth)))
        self.norm, self.head = nn.LayerNorm(given.width), nn.Linear(given.width, given.vocabulary)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.tokens(x) + self.positions(torch.arange(x.shape[1], device=x.device)))))


accelerator = Accelerator(cpu=given.device == "cpu", mixed_precision=given.precision)
text = torch.randint(given.vocabulary, (given.steps * given.batch, given.context + 1))
net = Gpt()
optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, given.steps)
net, optimizer, schedule, loader = accelerator.prepare(net, optimizer, schedule, torch.utils.data.DataLoader(text, batch_size=given.batch))
begin = time.perf_counter()
for batch in loader:
    with accelerator.accumulate(net):
        loss = nn.functional.cross_entropy(net(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        loss.item()
print(json.dumps({"tokens": given.steps * given.batch * given.context / (time.perf_counter() - begin)}))
