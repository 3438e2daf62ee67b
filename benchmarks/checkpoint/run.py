#!/usr/bin/env python3
"""What a checkpoint costs, beside Python's ways, one memcpy of its bytes and the disk's own write and fsync.

  run.py BINARY [--python PYTHON] [--wait S] [--layers N] [--width N] [--rounds N] [--turns N]

The state is LAYERS x WIDTH x WIDTH parameters with AdamW, 12 bytes each (1.2 GB by default). Stall is (save call and the following step) minus
an ordinary step, each the best of all rounds; steps while writing are compared by the medians of a round. Programs take turns. Exit code 1
when a goal is missed: an asynchronous stall of at most 1.2 memcpy and 0.25 of Accelerate's save_state; steps at most 5 % slower while a
checkpoint is written; durable at 0.95 of the disk's rate; a warm load at 0.8 of memory's.
"""
import pathlib
import shutil
import sys
import tempfile

sys.dont_write_bytecode = True
here = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(here.parent))
import machine

options = machine.options(__doc__, layers=24, width=2048, rounds=7, turns=1)
best = {}
folder = pathlib.Path(tempfile.mkdtemp(prefix="accelerate_checkpoint_"))  # set TMPDIR to measure another disk
try:
    for _ in range(options.turns):
        rows = []
        for arm in ("save", "load"):
            rows += machine.rows(machine.run(options.binary, arm, folder, options.layers, options.width, options.rounds))
        if options.python:
            rows += machine.rows(machine.run(options.python, here / "peer.py", folder, options.layers, options.width, options.rounds, quiet=True))
        for row in rows:
            key = row["arm"], row["what"]
            best[key] = min(row["value"], best.get(key, row["value"]))
finally:
    shutil.rmtree(folder)
ours = {what: value for (arm, what), value in best.items() if arm == "ours"}
gigabytes = ours["bytes"] / 1e9
print(f"{gigabytes:.2f} GB of state; a step takes {ours['step']:.3f} s; memcpy {ours['memcpy']:.3f} s, {gigabytes / ours['memcpy']:.1f} GB/s; the disk {ours['disk']:.3f} s, {gigabytes / ours['disk']:.2f} GB/s")
print(f"{'':<26}{'stall':>9}{'durable':>9}{'slower':>9}{'load':>9}{'cold':>9}")
lines = {"ours": ("stall", "durable", None, "load, warm", "load, cold"), "ours, not verified": (None, None, None, "load, warm, not verified", None),
         "ours, asynchronous": ("stall, asynchronous", "durable, asynchronous", "slower while writing", None, None)}
for name, columns in lines.items():
    print(f"{name:<26}" + "".join(f"{'-' if c is None or c not in ours else format(ours[c], '.3f'):>9}" for c in columns))
for arm in dict.fromkeys(arm for arm, what in best if what == "durable" and arm != "ours"):
    print(f"{arm:<26}" + "".join(f"{format(best[arm, c], '.3f') if (arm, c) in best else '-':>9}" for c in ("stall", "durable", "slower while writing", "load, warm", "load, cold")))
print(f"memory above the state: {ours['memory above the state'] / 1e9:.2f} GB")
missed = []


def goal(what, value, limit, least=False):
    fine = value >= limit if least else value <= limit
    print(f"{what}: {value:.2f} (goal {'at least' if least else 'at most'} {limit})")
    if not fine:
        missed.append(f"{what}: {value:.2f} (goal {limit})")


goal("asynchronous stall in memcpys", ours["stall, asynchronous"] / ours["memcpy"], 1.2)
if ("Accelerate, save_state", "stall") in best:
    goal("asynchronous stall of Accelerate's save_state", ours["stall, asynchronous"] / best["Accelerate, save_state", "stall"], 0.25)
if ours["slower while writing"]:
    goal("steps while writing, of an ordinary one", ours["slower while writing"], 1.05)
goal("durable, of the disk's rate", ours["disk"] / ours["durable"], 0.95, least=True)
goal("warm load, of memory's rate", ours["memcpy"] / ours["load, warm"], 0.8, least=True)
sys.exit(machine.verdict(missed))
