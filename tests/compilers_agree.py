#!/usr/bin/env python3
"""Two builds of the examples by different compilers say and write the same, to the last bit. What differs is mostly the order in which a compiler
evaluates arguments, where each of them draws random numbers.

  compilers_agree.py BUILD BUILD [MPIRUN...]     MPIRUN: the words that start ranks, whose number comes behind them
"""
import hashlib
import pathlib
import re
import subprocess
import sys
import tempfile

TREE = pathlib.Path(__file__).resolve().parents[1]
TEXTS = [TREE / "README.md", TREE / "LICENSE"]
EXAMPLES = {"quick_start": [], "train_gpt": ["--steps", "250"], "own_data_set": [], "own_order": [], "streaming_text": TEXTS, "images": [], "precisions": [],
            "fine_tune": [], "resume_training": ["run"], "eigen_simulation": [], "coupled_simulation": []}


def run(build, name, mpirun):
    """What the example says, without times, and the hash of each file that it writes."""
    with tempfile.TemporaryDirectory(prefix="accelerate_agree_") as folder:
        command = [*mpirun, 4 if name == "coupled_simulation" else 2] if mpirun else []
        done = subprocess.run([str(word) for word in [*command, build / "examples" / name, *EXAMPLES[name]]], cwd=folder, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            sys.exit(f"{name} of {build} ended with {done.returncode}\n{done.stderr[-2000:]}")
        said = re.sub(r"\S+ s$", "", done.stdout, flags=re.M)
        files = [path for path in sorted(pathlib.Path(folder).rglob("*")) if path.is_file()]
        return said, {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def main():
    if len(sys.argv) < 3 or sys.argv[1].startswith("-"):
        print(__doc__.strip())
        return 0 if sys.argv[1:2] in (["-h"], ["--help"]) else 2
    builds, mpirun, wrong, compared = [pathlib.Path(word).absolute() for word in sys.argv[1:3]], sys.argv[3:], 0, 0
    for name in EXAMPLES:
        if not all((build / "examples" / name).is_file() for build in builds) or (name == "coupled_simulation" and not mpirun):
            print(f"{name:<20} left out: not built, or it needs several ranks")
            continue
        (said, files), (other_said, other_files) = (run(build, name, mpirun) for build in builds)
        differ = [file for file in sorted({*files, *other_files}) if files.get(file) != other_files.get(file)]
        compared += 1
        agree = said == other_said and not differ
        wrong += not agree
        print(f"{name:<20} {len(said.splitlines())} lines, {len(files)} files: {'the same' if agree else 'DIFFERENT'} {' '.join(differ)}".rstrip(), flush=True)
        if said != other_said:
            print(f"--- {builds[0]}\n{said}--- {builds[1]}\n{other_said}")
    if compared == 0:
        print("nothing was compared: build the examples in both")
    return 1 if wrong or compared == 0 else 0


sys.exit(main())
