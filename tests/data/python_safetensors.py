# Made python.safetensors with safetensors 0.8.0 and torch 2.11.0: python3 python_safetensors.py python.safetensors
# Every tensor's bytes are (37 i + 11) mod 251 (BOOL: mod 2) for i = 0, 1, ..., so that tests can make them again.
import sys

import torch
from safetensors.torch import save_file


def tensor(dtype, *shape):
    size = torch.empty(0, dtype=dtype).element_size()
    count = size
    for dim in shape:
        count *= dim
    raw = ((torch.arange(count) * 37 + 11) % (2 if dtype == torch.bool else 251)).to(torch.uint8)
    return raw.view(dtype).view(shape) if shape else raw.view(dtype)[0]


tensors = {
    "z": tensor(torch.float32, 3, 5),
    "a": tensor(torch.float32, 2),
    "scalar": tensor(torch.float32),
    "empty": torch.empty(0, 4),
    "half": tensor(torch.float16, 7),
    "brain": tensor(torch.bfloat16, 3),
    "double": tensor(torch.float64, 2, 2),
    "complex": tensor(torch.complex64, 3),
    "mask": tensor(torch.bool, 5),
    "u8": tensor(torch.uint8, 3),
    "u16": tensor(torch.uint16, 3),
    "u32": tensor(torch.uint32, 3),
    "u64": tensor(torch.uint64, 3),
    "i8": tensor(torch.int8, 3),
    "i16": tensor(torch.int16, 3),
    "i32": tensor(torch.int32, 3),
    "i64": tensor(torch.int64, 3),
    "e4m3": tensor(torch.float8_e4m3fn, 3),
    "e5m2": tensor(torch.float8_e5m2, 3),
    "e4m3fnuz": tensor(torch.float8_e4m3fnuz, 3),
    "e5m2fnuz": tensor(torch.float8_e5m2fnuz, 3),
    "e8m0": tensor(torch.float8_e8m0fnu, 3),
    "packed": tensor(torch.float4_e2m1fn_x2, 2, 3),
    "gr\u00fc\u00dfe \"quoted\" \\ \u4f60\u597d": tensor(torch.float32, 1, 1, 1, 1),
}
save_file(tensors, sys.argv[1], metadata={"no\u0001te": "tab\t newline\n quote\" slash/ bell\u0007 delete\u007f gr\u00fc\u00dfe"})
