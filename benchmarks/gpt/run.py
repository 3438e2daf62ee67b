#!/usr/bin/env python3
"""Tokens a second of the main job on one process, beside Python Accelerate's on the same model.

  run.py BINARY [--python PYTHON] [--repeat N] [--steps N] [--width N] [--depth N] [--batch N] [--context N] [--wait S]

BINARY is train_gpt (CPU), train_gpt_cuda or train_gpt_cuda_bf16: its name says on which device, in which precision. Programs
alternate N times; the fastest counts. Both report from their first step on, warm-up included, and look at the loss of each step.
Exit code 1 when ours is slower.
"""
import pathlib
import re
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
here = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))
import machine

options = machine.options(__doc__, repeat=2, steps=60, width=128, depth=4, batch=16, context=128)
name = pathlib.Path(options.binary).name
device, precision = "cuda" if "_cuda" in name else "cpu", "bf16" if name.endswith("_bf16") else "no"
shape = [word for key in ("steps", "width", "depth", "batch", "context") for word in (f"--{key}", str(getattr(options, key)))]


def ours():
    machine.settle(name)
    with tempfile.TemporaryDirectory() as folder:  # so few steps need not learn, so its exit code does not count
        done = subprocess.run([options.binary, *shape, "--out", folder], env=machine.ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    speeds = re.findall(r"(\d+) tokens/s", done.stderr)
    if not speeds:
        raise SystemExit(f"{name} ended with exit code {done.returncode}\n{done.stderr}")
    return float(speeds[-1]), re.search(r"(\d+) characters", done.stdout)[1]


speeds, peers = [], []
for _ in range(options.repeat):
    speed, vocabulary = ours()
    speeds.append(speed)
    if options.python:
        peers.append(machine.rows(machine.run(options.python, here / "peer.py", device, precision, "--vocabulary", vocabulary, *shape))[-1]["tokens"])
print(f"{device}, mixed_precision {precision}: ours {max(speeds):.0f} tokens/s", end="")
print(f", Python Accelerate {max(peers):.0f}: {max(speeds) / max(peers):.2f} times" if peers else "")
sys.exit(machine.verdict(["slower than Python Accelerate"] if peers and max(speeds) < max(peers) else []))
