"""Drawing with a model: what it draws depends on its prompt and seed alone, and can be told how."""

import numpy as np
import pytest
import torch
from PIL import Image

from bedstone.diffusion.sample import SampleControls, generators_of, sample
from bedstone.errors import BedstoneError
from bedstone.tasks.media.generator import MediaGenerator, rows_of
from drawings import SHAPES, STEPS, drawing

PHOTO = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)


def close(a, b, within=1e-4):
    torch.testing.assert_close(a, b, atol=within, rtol=within)


def apart(a, b):
    assert (a - b).abs().mean() > 1e-2


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("condition", ["none", "class", "text"])
def test_every_signal_is_drawn_from_every_condition(kind, condition):
    prompts = {"none": [None, None], "class": ["dog", 0], "text": ["a red circle", "ink"]}
    drawn = MediaGenerator(drawing(condition, kind)).draw(prompts[condition], [0, 0])
    assert drawn.signals.shape == (2, *SHAPES[kind])
    assert drawn.kind == kind
    if condition != "none":  # the same noise, and another prompt
        apart(*drawn.signals)


@pytest.mark.parametrize("method", ["ddim", "ddpm", "dpm_solver_sde"])
@pytest.mark.parametrize("condition", ["class", "text"])
def test_a_row_depends_on_its_prompt_and_seed_alone(condition, method):
    drawer = MediaGenerator(drawing(condition))
    prompts = ["cat", "dog", "cat"] if condition == "class" else ["two green stars in ink", "a", ""]
    together = drawer.draw(prompts, [3, 4, 5], method=method).signals
    for row, (prompt, seed) in enumerate(zip(prompts, [3, 4, 5], strict=True)):
        close(drawer.draw([prompt], [seed], method=method).signals[0], together[row])
    apart(together[0], together[2])


def test_rows_beyond_a_batch_are_the_same_rows(monkeypatch):
    drawer = MediaGenerator(drawing())
    whole = drawer.draw(["cat", "dog", "cat"], [0, 1, 2])
    noise = drawer.engine.noise([0, 1, 2], (3, 8, 8))
    monkeypatch.setattr("bedstone.tasks.media.generator.BATCH", 2)
    shares = []
    parts = drawer.draw(
        ["cat", "dog", "cat"], [0, 1, 2], progress=lambda now: shares.append(now.share)
    )
    close(parts.signals, whole.signals)
    close(drawer.draw(["cat", "dog", "cat"], [9, 9, 9], noise=noise).signals, whole.signals)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert len(shares) == 8


def test_classes_by_name_part_of_a_name_and_number():
    drawer = MediaGenerator(drawing())
    rows = drawer.draw(["tree frog, tailed frog", "Tailed Frog", 2, "2"], [0] * 4).signals
    for row in rows[1:]:
        close(row, rows[0])
    with pytest.raises(
        BedstoneError, match=r"'dgo' is unknown; perhaps 'dog'.*cat, dog, tree frog"
    ):
        drawer.draw(["dgo"], [0])
    for wrong in (3, "7", -1):
        with pytest.raises(BedstoneError, match=r"out of range.*3 classes, 0 to 2|'-1' is unknown"):
            drawer.draw([wrong], [0])


def test_guidance_goes_towards_the_prompt_and_away_from_the_negative():
    drawer = MediaGenerator(drawing("text"))
    plain = drawer.draw(["a red circle"], [0], guidance=1.0).signals
    apart(plain, drawer.draw(["a red circle"], [0], guidance=6.0).signals)
    away = drawer.draw(["a red circle"], [0], negative="stars", guidance=6.0).signals
    apart(away, drawer.draw(["a red circle"], [0], guidance=6.0).signals)
    # Away from itself, nowhere: guidance between equals changes nothing.
    close(
        drawer.draw(["ink"], [0], negative="ink").signals,
        drawer.draw(["ink"], [0], guidance=1.0).signals,
    )
    with pytest.raises(BedstoneError, match=r"negative.*guidance above 1"):
        drawer.draw(["ink"], [0], negative="stars", guidance=1.0)


def test_a_class_is_drawn_away_from_another():
    drawer = MediaGenerator(drawing())
    apart(drawer.draw(["cat"], [0], negative="dog").signals, drawer.draw(["cat"], [0]).signals)


def test_from_a_picture_little_strength_stays_near_it():
    drawer = MediaGenerator(drawing())
    start = torch.rand(3, 8, 8) * 2 - 1
    away = [
        (drawer.draw(["cat"], [0], image=start, strength=strength, steps=20).signals[0] - start)
        .abs()
        .mean()
        for strength in (0.1, 0.5, 1.0)
    ]
    assert away[0] < away[1] < away[2]
    recipe = drawer.draw(["cat"], [0], image=PHOTO).recipes[0]
    assert recipe["strength"] == 0.6
    assert recipe["image"] == "a ndarray"


@pytest.mark.parametrize("latent", [False, True])
def test_what_a_mask_keeps_stays_as_it_was(latent, tmp_path):
    drawer = MediaGenerator(drawing(latent=latent))
    side = 16 if latent else 8
    pixels = np.random.default_rng(1).integers(0, 255, (side, side, 3), dtype=np.uint8)
    mask = np.zeros((side, side), np.uint8)
    mask[:, side // 2 :] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    drawn = drawer.draw(["cat", "dog"], [0, 1], image=pixels, mask=tmp_path / "mask.png").signals
    there = torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1
    for row in drawn:
        close(row[:, :, : side // 2], there[:, :, : side // 2])
        apart(row[:, :, side // 2 :], there[:, :, side // 2 :])


def test_bad_masks_and_starts_are_named():
    drawer = MediaGenerator(drawing())
    dark = np.zeros((20, 30), np.uint8)
    with pytest.raises(BedstoneError, match="mask: is 10 x 9 pixels, and the picture 30 x 20"):
        drawer.draw(["cat"], [0], image=PHOTO, mask=np.zeros((9, 10), np.uint8))
    with pytest.raises(BedstoneError, match="black all over"):
        drawer.draw(["cat"], [0], image=PHOTO, mask=dark)
    with pytest.raises(BedstoneError, match="mask: was given without an image"):
        drawer.draw(["cat"], [0], mask=dark)
    with pytest.raises(BedstoneError, match="strength: was given without an image"):
        drawer.draw(["cat"], [0], strength=0.4)
    for strength in (0, 1.5):
        with pytest.raises(BedstoneError, match="strength"):
            drawer.draw(["cat"], [0], image=PHOTO, strength=strength)
    with pytest.raises(BedstoneError, match=r"image: a signal of \(3, 4, 4\)"):
        drawer.draw(["cat"], [0], image=torch.zeros(3, 4, 4))
    with pytest.raises(BedstoneError, match=r"mask: its shape is \(1, 4, 4\)"):
        drawer.draw(["cat"], [0], image=torch.zeros(3, 8, 8), mask=torch.ones(1, 4, 4))
    with pytest.raises(BedstoneError, match="draws audio"):
        MediaGenerator(drawing("none", "audio")).draw([None], [0], image=PHOTO)


@pytest.mark.parametrize("condition", ["none", "class", "text"])
def test_a_variation_without_change_is_the_picture(condition):
    drawer = MediaGenerator(drawing(condition, predicts="flow_prediction"))
    start = torch.rand(3, 8, 8) - 0.5
    steps = {"steps": 12}
    same = drawer.variations(start, [0, 1], change=0.0, **steps).signals
    assert (same - start).abs().mean() < 0.05
    close(same[0], same[1], 1e-3)
    some = drawer.variations(start, [0, 1], change=0.3, **steps).signals
    more = drawer.variations(start, [0, 1], change=1.0, **steps).signals
    assert (some - start).abs().mean() < (more - start).abs().mean()
    apart(some[0], some[1])
    fresh = drawer.draw([None], [0], guidance=1.0, method="ddim", **steps).signals
    close(more[:1], fresh, 1e-3)
    with pytest.raises(BedstoneError, match="strength: 2"):
        drawer.variations(start, [0], change=2)


@pytest.mark.parametrize("condition", ["none", "class", "text"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_between_two_begins_and_ends_with_them(condition, guidance):
    drawer = MediaGenerator(drawing(condition))
    ends = {"none": (None, None), "class": ("cat", "dog"), "text": ("a red circle on white", "ink")}
    first, last = ends[condition]
    how = {} if condition == "none" else {"guidance": guidance}
    found = drawer.between(first, last, 5, (3, 8), **how)
    alone = drawer.draw([first, last], [3, 8], **how).signals
    close(found.signals[0], alone[0])
    close(found.signals[-1], alone[1])
    steps = (found.signals[1:] - found.signals[:-1]).flatten(1).norm(dim=1)
    assert steps.max() < (alone[1] - alone[0]).norm()  # each is nearer than both ends are
    assert [recipe["share"] for recipe in found.recipes] == [0, 0.25, 0.5, 0.75, 1]


def test_a_story_begins_from_one_noise_and_shares_a_style():
    drawer = MediaGenerator(drawing("text"))
    told = drawer.story(["a red circle", "a blue square"], 7, style="drawn in ink")
    assert [recipe["prompt"] for recipe in told.recipes] == [
        "a red circle, drawn in ink",
        "a blue square, drawn in ink",
    ]
    assert [recipe["seed"] for recipe in told.recipes] == [7, 7]
    close(told.signals[:1], drawer.draw(["a red circle, drawn in ink"], [7]).signals)
    with pytest.raises(BedstoneError, match="style"):
        MediaGenerator(drawing()).story(["cat"], style="ink")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"method": "dmp_solver_2m"},
            "method: 'dmp_solver_2m' is unknown; perhaps 'dpm_solver_2m'",
        ),
        ({"spacing": "karas"}, "spacing: 'karas' is unknown; perhaps 'karras'"),
        ({"spacing": "karras"}, "spacing"),  # a flow begins from noise alone
        ({"steps": 0}, "steps: 0"),
        ({"steps": "many"}, "steps"),
        ({"guidance": -1.0}, "guidance: -1"),
        ({"interval": (0.9, 0.1)}, "interval"),
        ({"rescale": 2.0}, "rescale: 2"),
        ({"gidance": 2.0}, "'gidance'.*perhaps 'guidance'"),
        ({"size": (8, 9)}, "size: .8, 9. isn't divided by the patches"),
        ({"size": (8,)}, "size"),
    ],
)
def test_bad_settings_are_named(given, words):
    with pytest.raises(BedstoneError, match=words):
        MediaGenerator(drawing()).draw(["cat"], [0], **given)


def test_more_steps_than_were_trained_are_refused():
    with pytest.raises(BedstoneError, match="steps: 1001"):
        MediaGenerator(drawing(process=STEPS)).draw(["cat"], [0], steps=1001)


def test_settings_change_what_they_say():
    drawer = MediaGenerator(drawing(process=STEPS))
    base = drawer.draw(["cat"], [0]).signals
    changes = (
        {"steps": 9},
        {"method": "ddim"},
        {"interval": (0.0, 0.5)},
        {"rescale": 0.7},
        {"spacing": "karras"},
    )
    for change in changes:
        drawn = drawer.draw(["cat"], [0], **change)
        assert (drawn.signals - base).abs().max() > 1e-4, change
        name, value = next(iter(change.items()))
        assert drawn.recipes[0]["sampling"][name] in (
            value,
            list(value) if name == "interval" else value,
        )


def test_another_size_is_drawn():
    assert MediaGenerator(drawing()).draw(["cat"], [0], size=(16, 12)).signals.shape == (
        1,
        3,
        16,
        12,
    )
    latent = MediaGenerator(drawing(latent=True))
    assert latent.draw(["cat"], [0], size=(24, 16)).signals.shape == (1, 3, 24, 16)
    with pytest.raises(BedstoneError, match="multiples of 2"):
        latent.draw(["cat"], [0], size=(15, 16))
    with pytest.raises(BedstoneError, match=r"multiples of \[4, 4\]"):
        latent.draw(["cat"], [0], size=(18, 16))


def test_what_is_not_finite_is_named():
    drawer = MediaGenerator(drawing())
    lost = torch.full((3, 8, 8), torch.nan)
    with pytest.raises(BedstoneError, match="image: holds values that aren't finite"):
        drawer.draw(["cat"], [0], image=lost)
    noise = torch.stack([torch.zeros_like(lost), lost])
    with pytest.raises(BedstoneError, match=r"seed 5: what was drawn .* isn't finite"):
        drawer.draw(["cat", "cat"], [4, 5], noise=noise)


def test_latents_that_were_kept_aside_are_decoded_where_the_autoencoder_is(monkeypatch):
    engine, seen = MediaGenerator(drawing(latent=True)).engine, []
    network = engine.model.autoencoder.network
    monkeypatch.setattr(network, "parameters", lambda: iter([torch.empty(1, device="meta")]))

    def pictures(latents):
        seen.append(latents.device.type)
        return torch.zeros(1, 3, 16, 16)

    monkeypatch.setattr(network, "pictures", pictures)
    assert engine.shown(torch.randn(2, 4, 8, 8)).shape == (2, 3, 16, 16)
    assert seen == ["meta", "meta"]


def test_noise_of_another_shape_is_named():
    for shape in ((1, 3, 8, 8), (2, 3, 4, 4)):
        with pytest.raises(BedstoneError, match=r"noise: its shape .* expected \(2, 3, 8, 8\)"):
            MediaGenerator(drawing()).draw(["cat", "dog"], [0, 1], noise=torch.zeros(shape))


def test_starts_and_masks_that_do_not_go_together_are_named():
    model = drawing("none")
    parts = model.network, model.process, model.target, (3, 8, 8), model.sampling
    for asked, said in (
        (SampleControls(mask=torch.ones(1, 1, 8, 8)), "mask: was given without a start"),
        (
            SampleControls(start=torch.zeros(3, 3, 8, 8)),
            "start: 3 signals were given to draw 2 from",
        ),
    ):
        with pytest.raises(BedstoneError, match=said):
            sample(*parts, generators_of([0, 1]), controls=asked)


def test_what_is_not_given_of_a_variation_is_as_said():
    drawer, image = MediaGenerator(drawing(guidance=3.0)), torch.zeros(3, 8, 8)
    told = drawer.variations(image, [0], prompt="cat", guidance=None, method=None).recipes[0]
    assert (told["sampling"]["guidance"], told["sampling"]["method"]) == (1.0, "ddim")


def test_what_is_told_to_a_model_that_is_told_nothing():
    alone = MediaGenerator(drawing("none"))
    for given in ({"guidance": 3.0}, {"negative": "ink"}):
        with pytest.raises(BedstoneError, match="without being told what"):
            alone.draw([None], [0], **given)
    with pytest.raises(BedstoneError, match="prompt: 'a cat'"):
        alone.draw(["a cat"], [0])


def test_bad_prompts_and_seeds_are_named():
    drawer = MediaGenerator(drawing("text"))
    with pytest.raises(BedstoneError, match="prompt: none was given; the model draws from words"):
        drawer.draw([], [])
    with pytest.raises(BedstoneError, match="expected words"):
        drawer.draw([4], [0])
    with pytest.raises(BedstoneError, match="24 at most"):
        drawer.draw(["a red circle " * 20], [0])
    with pytest.raises(BedstoneError, match="seed: -1"):
        drawer.draw(["ink"], [-1])
    with pytest.raises(BedstoneError, match="seed"):
        drawer.draw(["ink"], [1, 2])
    with pytest.raises(BedstoneError, match="count: 0"):
        rows_of(["ink"], 0, 0)
    assert rows_of(["a", "b"], 2, 5) == (["a", "a", "b", "b"], [5, 6, 5, 6])
