"""Opening a model for the engine takes little memory besides what the engine then reads."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bedstone
from bedstone.checkpoints.model import Model
from bedstone.models.gpt.network import GPTConfig, build
from bedstone.nn.fast import kernels
from bedstone.runtime import hand_back

# Peaks of memory while the folder is opened in each precision, after all that opening imports.
CHILD = """
import ctypes, json, sys
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
import bedstone
from bedstone.generation.autoregress import ready
from bedstone.runtime import pick_precision

def size(name):
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition(name + ":")[2].split()[0])

small, folder, *names = sys.argv[1:]
found = {}
for name in names:
    how = replace(pick_precision(name, torch.device("cpu")), auto=False)  # nothing is measured
    ready(bedstone.load(small).network, how)  # loads libraries
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = size("VmRSS")
    model = bedstone.load(folder)
    decoder = ready(model.network, how)
    found[name] = [size("VmHWM") - before, decoder.nbytes]
    del model, decoder
print(json.dumps(found))
"""
needs_pagemap = pytest.mark.skipif(
    not Path("/proc/self/pagemap").exists(), reason="this system doesn't say what is in memory"
)

needs_engine = pytest.mark.skipif(kernels.library() is None, reason="there is no engine here")


def saved(folder, dtype, **shape):
    """A model's folder, of which nothing is kept in memory."""
    config = GPTConfig(layout="llama", vocab_size=512, heads=8, context=64, **shape)
    network = build(config, seed=0).eval().to(dtype)
    Model(network).write_network(folder)
    return folder


def resident(tensor):
    """Whether the first page of a tensor is in memory."""
    with Path("/proc/self/pagemap").open("rb") as file:
        file.seek(8 * (tensor.data_ptr() // 4096))
        return bool(int.from_bytes(file.read(8), "little") >> 63)


def peaks(tmp_path, dtype, layers, *names):
    """The peak and what the engine reads, in bytes, of each precision."""
    folders = [tmp_path / name for name in ("small", "large")]
    for folder, count in zip(folders, (1, layers), strict=True):
        folder.mkdir()
        saved(folder, dtype, width=768, layers=count)
    command = [sys.executable, "-c", CHILD, *map(str, folders), *names]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


@needs_pagemap
@needs_engine
def test_the_peak_is_at_most_a_fifth_above_what_the_engine_reads(tmp_path):
    ((peak, packed),) = peaks(tmp_path, torch.bfloat16, 6, "int8").values()
    assert packed > 40e6 and peak < 1.2 * packed


@pytest.mark.slow
@needs_pagemap
@needs_engine
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_so_it_is_in_each_precision(tmp_path, dtype):
    found = peaks(tmp_path, dtype, 12, "bf16", "int8", "int4")
    assert len(found) == 3
    for name, (peak, packed) in found.items():
        most = 1.3 if name == "int4" else 1.2  # 1.26 measured: fp32 weights are read to be packed
        assert packed > 50e6 and peak < most * packed, (name, peak, packed)


@needs_pagemap
def test_only_unchanged_pages_of_files_are_handed_back(tmp_path):
    network = bedstone.load(saved(tmp_path, torch.float32, width=64, layers=1)).network
    weight, other = network.stack[0]["mlp"].sublayer.up.weight, network.embed.weight
    held = weight.clone()
    assert resident(weight)
    hand_back(weight)
    assert not resident(weight)
    assert torch.equal(weight, held)
    hand_back(weight.t()[3:])  # a part that doesn't lie in one piece
    assert torch.equal(weight, held)
    with torch.no_grad():
        other[-1, -1] = 7.0  # in memory alone from now on
    hand_back(other)
    assert other[-1, -1] == 7.0
    for own in (torch.arange(100_000), torch.zeros(0), torch.ones(3).bfloat16()):
        copy = own.clone()
        hand_back(own)
        assert torch.equal(own, copy)
