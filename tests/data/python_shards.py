# Made python_shards/ with accelerate 1.15.0, safetensors 0.6.2 and torch 2.11.0: python3 python_shards.py python_shards
# Tensor number i has the bytes (37 j + 11 i) mod 251, j = 0, 1, ..., so that tests can make them again.
import sys

import torch
from accelerate import Accelerator

SIZES = [(5, 4), (30, 4), (7,), (3, 3), (64,), (2, 2), (1,), (25,)]  # fp32; of at most 200 bytes a file: two of them are larger


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for i, size in enumerate(SIZES):
            count = 4 * torch.Size(size).numel()
            raw = ((torch.arange(count) * 37 + 11 * i) % 251).to(torch.uint8)
            self.register_buffer(f"t{i}", raw.view(torch.float32).view(size))


Accelerator(cpu=True).save_model(Model(), sys.argv[1], max_shard_size=200)
