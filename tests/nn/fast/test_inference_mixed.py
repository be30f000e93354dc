"""Mixed precision rounds in the late MLPs of long rows, and nowhere else."""

import pytest
import torch

from bedstone.models.gpt.network import GPTConfig, build
from bedstone.nn.fast import frozen as packed
from bedstone.nn.fast.inference import LONG, SHORT, for_inference, for_mixed_inference
from bedstone.nn.masks import Documents
from networks import randomise


@pytest.mark.parametrize("layout", ["gpt2", "llama"])
@pytest.mark.parametrize("packs", [True, False])
def test_only_late_mlps_of_long_rows_are_rounded(layout, packs, monkeypatch):
    if not packs:
        monkeypatch.setattr(packed, "_packs", lambda dtype: False)
    shape = {"vocab_size": 61, "width": 32, "layers": 6, "heads": 4, "hidden": 48, "context": 64}
    network = build(GPTConfig(layout=layout, **shape))
    randomise(network)
    exact = for_inference(network.eval(), torch.float32)
    rough = for_inference(network, torch.bfloat16)
    mixed = for_mixed_inference(network, torch.bfloat16)
    early = {}
    for name, ready in (("exact", exact), ("mixed", mixed)):
        ready.stack[3].register_forward_hook(lambda *seen, name=name: early.update({name: seen[2]}))

    def states(ready, lengths):
        ids = torch.arange(sum(lengths))[None] % 61
        numbers = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[None]
        places = torch.cat([torch.arange(length) for length in lengths])[None]
        with torch.no_grad():
            return ready.states(ids, mask=Documents(numbers), positions=places).float()

    lengths = [SHORT, SHORT + 5]
    plain, found = states(exact, lengths), states(mixed, lengths)
    assert torch.equal(early["exact"], early["mixed"])  # what leaves the fourth of six blocks
    off, far = (found - plain).abs().mean(), (states(rough, lengths) - plain).abs().mean()
    assert 0 < off < 0.8 * far
    states(exact, [LONG]), states(mixed, [LONG])
    assert not torch.equal(early["exact"], early["mixed"])  # the fourth is rounded too
    short = [SHORT - 1, SHORT + 5]
    assert torch.equal(states(mixed, short), states(exact, short))
