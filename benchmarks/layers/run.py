#!/usr/bin/env python3
"""Instructions of a forward through 12 resident blocks: a hand-written loop, and `Layers`, by callgrind.

  run.py BINARY

Exit code 1 when a goal is missed: at most 1 % more.
"""
import pathlib
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import machine

options = machine.options(__doc__)
hand, ours = (machine.instructions(options.binary, arm) for arm in ("hand", "ours"))
print(f"instructions a forward   hand {hand:.0f}, Layers {ours:.0f}: {ours - hand:+.0f}, {100 * (ours / hand - 1):+.3f} % (goal at most 1 %)")
sys.exit(machine.verdict([] if ours <= 1.01 * hand else ["Layers costs more than 1 %"]))
