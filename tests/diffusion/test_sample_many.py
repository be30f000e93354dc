"""Many samples by one loop: rows by their seeds whatever the batch, progress, the protocol."""

import pytest
import torch

from bedstone.data.signals.signals import class_condition
from bedstone.diffusion.sample import Generator, SampleControls, SampleInputs
from drawings import drawing


def conditions(model, classes: list[int]) -> tuple[SampleInputs, SampleInputs]:
    count = len(model.signal.names)
    return class_condition(classes, count), class_condition([count], count)


@pytest.mark.parametrize("latent", [False, True])
def test_a_row_is_its_seeds_and_its_conditions(latent):
    model = drawing(latent=latent)
    condition, null = conditions(model, [0, 1, 2, 0, 1])
    steps = []
    whole = model.sample(range(5), condition=condition, null=null)
    parts = model.sample(
        range(5), condition=condition, null=null, batch=2, decoded=1, progress=steps.append
    )
    assert whole.shape == (5, *model.signal.shape)
    torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-4)
    one, _ = conditions(model, [2])
    alone = model.sample([2], condition=one, null=null)
    torch.testing.assert_close(alone[0], whole[2], atol=1e-4, rtol=1e-4)
    assert [step.first for step in steps] == [0] * 4 + [2] * 4 + [4] * 4
    assert [step.step for step in steps[:4]] == [1, 2, 3, 4]
    assert steps[0].clean.shape == (2, *model.sample_shape)
    shares = [step.share for step in steps]
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_starts_and_noise_of_each_row_go_with_their_seeds():
    model = drawing()
    condition, null = conditions(model, [0, 1, 2])
    noise, start = torch.randn(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    asked = SampleControls(start=start, noise=noise, strength=0.5)
    given = {"condition": condition, "null": null, "controls": asked}
    whole = model.sample(range(3), **given)
    torch.testing.assert_close(
        model.sample(range(3), batch=1, **given), whole, atol=1e-4, rtol=1e-4
    )


def test_a_pipeline_is_a_generator():
    assert isinstance(drawing(), Generator)
    assert not isinstance(drawing().network, Generator)
