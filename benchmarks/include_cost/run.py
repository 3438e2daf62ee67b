#!/usr/bin/env python3
"""What including the library costs a translation unit, beside one that includes torch/torch.h alone: seconds of CPU, and memory.

  run.py BUILD [--repeat N] [--wait S]    BUILD has compile_commands.json, for the compiler and its flags

Minima of N interleaved rounds. Exit code 1 when a goal is missed: 1.15 times in time and in memory, for include/ and for
single_include/.
"""
import json
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
here = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))
import machine

options = machine.options(__doc__, repeat=3)
tree = here.parent.parent
entries = json.loads((pathlib.Path(options.binary) / "compile_commands.json").read_text(encoding="utf-8"))
entry = next(e for e in entries if e["file"].endswith("examples/quick_start.cpp"))
words = shlex.split(entry["command"])
words = words[:words.index("-o")]
if "-include" in words:  # the precompiled header, which would hide what is measured
    del words[words.index("-include"):words.index("-include") + 2]
# Our own builds' -O and --param are not a user's.
words = [w for w in words if not w.startswith(("-I", "-O", "--param")) and w not in ("-Winvalid-pch", "-fpch-preprocess")] + ["-O2"]
torch, ours = "#include <torch/torch.h>\n", "#include <accelerate.hpp>\n"
arms = {"torch alone": (torch, []), "include": (torch + ours, ["-I", tree / "include"]), "single_include": (torch + ours, ["-I", tree / "single_include"])}
best = {}
with tempfile.TemporaryDirectory() as folder:
    source = pathlib.Path(folder) / "main.cpp"
    for _ in range(options.repeat):
        for arm, (text, flags) in arms.items():
            source.write_text(text + "int main() {}\n", encoding="utf-8")
            machine.settle(arm)
            process = subprocess.Popen([*words, *map(str, flags), "-c", str(source), "-o", os.devnull], cwd=entry["directory"])
            _, status, used = os.wait4(process.pid, 0)
            if status:
                raise SystemExit(f"{arm} does not compile")
            found = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
            best[arm] = [min(a, b) for a, b in zip(best.get(arm, found), found)]

missed = []
print(f"{'':>16} {'CPU s':>8} {'times':>6} {'MB':>8} {'times':>6}")
for arm, (seconds, megabytes) in best.items():
    ratios = seconds / best["torch alone"][0], megabytes / best["torch alone"][1]
    print(f"{arm:>16} {seconds:8.2f} {ratios[0]:6.2f} {megabytes:8.0f} {ratios[1]:6.2f}")
    missed += [f"{arm}: {ratio:.2f} times the {what} (goal 1.15)" for what, ratio in zip(("time", "memory"), ratios) if ratio > 1.15]
sys.exit(machine.verdict(missed))
