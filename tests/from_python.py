#!/usr/bin/env python3
"""examples/from_python.md names every member of Python's Accelerator, and what it names here exists."""
import pathlib
import re
import sys

tree = pathlib.Path(__file__).resolve().parent.parent
page = (tree / "examples" / "from_python.md").read_text(encoding="utf-8")
members = [line for line in (tree / "tests" / "data" / "accelerator_members.txt").read_text(encoding="utf-8").split("\n") if line and not line.startswith("#")]
headers = "\n".join(path.read_text(encoding="utf-8") for path in sorted((tree / "include").rglob("*.hpp")))
accelerator = "\n".join((tree / "include" / "accelerate" / name).read_text(encoding="utf-8") for name in ("accelerator.hpp", "process_control.hpp", "state_control.hpp"))
wrong = []

rows = {match[1]: match[2].strip() for match in re.finditer(r"^\| `(\w+)` \| ([^|]*)\|", page, re.MULTILINE)}
wrong += [f"{name} is missing" for name in members if name not in rows]
wrong += [f"{name} is no member of Python's" for name in rows if name not in members]
for name, ours in rows.items():
    if ours.startswith(("later", "-")):
        continue
    for code in re.findall(r"`([^`]*)`", ours):
        last = re.findall(r"\w+", re.split(r"[(<]", code)[0])[-1]
        where = accelerator if code.startswith("accelerator.") else headers
        if not re.search(rf"\b{last}\b" + (r"\(" if code.startswith("accelerator.") else ""), where):
            wrong.append(f"{name}: there is no {code}")
print("\n".join(wrong) if wrong else f"{len(rows)} members of Python's, each with ours or the reason why not")
sys.exit(1 if wrong else 0)
