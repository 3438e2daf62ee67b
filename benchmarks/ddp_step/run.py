#!/usr/bin/env python3
"""A DDP step at 2 ranks with one thread each, ours against Python Accelerate with Gloo, from 0.1 to 50 M parameters.

  run.py BINARY [--python PYTHON] [--repeat N]   PYTHON has torch and accelerate; programs alternate N times, best medians count
"""
import argparse
import json
import os
import subprocess
import sys

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("binary")
parser.add_argument("--python")
parser.add_argument("--repeat", type=int, default=2)
options = parser.parse_args()
here = os.path.dirname(os.path.abspath(__file__))
environment = dict(os.environ, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive", OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", ACCELERATE_USE_CPU="true")
mpirun = ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", "2", options.binary]


def last_json(command):
    text = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    return json.loads([line for line in text.splitlines() if line.startswith("{")][-1])


def best(rows):
    return {key: min(row[key][0] for row in rows) for key in rows[0] if isinstance(rows[0][key], list)}


ok = True
print(f"{'parameters':>12} {'silent':>8} {'ddp':>8} {'sliced':>8} {'overlap':>8} {'Gloo':>8} {'Gloo best':>9}   ddp/silent sliced/silent ddp/Gloo best   (ms, medians)")
for width in (141, 447, 1000, 2280, 3162):
    rounds = 40 if width < 1000 else 12
    ours, peers = [], []
    for _ in range(options.repeat):
        ours.append(last_json(mpirun + [str(width), str(rounds)]))
        if options.python:
            peers.append(last_json([options.python, "-m", "torch.distributed.run", "--nproc-per-node", "2", os.path.join(here, "peer.py"), str(width), str(rounds)]))
    a, p = best(ours), best(peers) if peers else {"default": float("nan"), "best": float("nan")}
    print(f"{ours[0]['parameters']:12d} {a['silent']:8.2f} {a['ddp']:8.2f} {a['sliced']:8.2f} {a['overlapped']:8.2f} {p['default']:8.2f} {p['best']:9.2f}   "
          f"{a['ddp'] / a['silent']:10.2f} {a['sliced'] / a['silent']:13.2f} {a['ddp'] / p['best']:13.2f}", flush=True)
    ok = ok and (not peers or a["ddp"] < min(p.values()))
print(subprocess.run(mpirun + ["2280", "timeline"], env=environment, check=True, capture_output=True, text=True).stdout)
sys.exit(0 if ok else 1)
