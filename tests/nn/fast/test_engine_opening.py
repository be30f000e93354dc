"""Making a network ready for the engine takes little memory besides what the engine then reads."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bedstone.checkpoints.model import Model
from bedstone.models.gpt.network import GPTConfig, build
from bedstone.nn.fast import kernels

# Peaks while an opened network is made ready in each precision, beyond what it holds itself.
CHILD = """
import json, sys
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

small, folder, name = sys.argv[1:]
how = replace(pick_precision(name, torch.device("cpu")), auto=False)  # nothing is measured
ready(bedstone.load(small).network, how)  # loads libraries
model = bedstone.load(folder)
Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
before = size("VmRSS")
decoder = ready(model.network, how)
print(json.dumps([size("VmHWM") - before, decoder.nbytes]))
"""
pytestmark = [
    pytest.mark.skipif(
        not Path("/proc/self/clear_refs").exists(), reason="peaks of memory can't be reset here"
    ),
    pytest.mark.skipif(kernels.library() is None, reason="there is no engine here"),
]


def saved(folder: Path, dtype: torch.dtype, layers: int) -> Path:
    folder.mkdir()
    config = GPTConfig(
        layout="llama", vocab_size=512, width=768, heads=8, context=64, layers=layers
    )
    Model(build(config, seed=0).eval().to(dtype)).write_network(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bf16"])
def test_the_peak_is_at_most_a_fifth_above_what_the_engine_reads(tmp_path, name):
    small, large = (saved(tmp_path / str(n), torch.bfloat16, n) for n in (1, 8))
    command = [sys.executable, "-c", CHILD, str(small), str(large), name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert not done.returncode, done.stderr
    peak, packed = json.loads(done.stdout)
    print(f"{name}: {peak / packed:.2f}")
    assert packed > 25e6 and peak < 1.2 * packed, (peak, packed)
