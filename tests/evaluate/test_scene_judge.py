"""The judge of drawn scenes: what is asked for, what counts as there, and that it learns."""

from collections import Counter

import pytest
import torch

from bedstone.data.scenes.captions import caption
from bedstone.data.scenes.world import HELD_OUT, make_scene
from bedstone.errors import BedstoneError
from bedstone.evaluate.scene_judge import (
    SceneGridConfig,
    SceneJudge,
    build,
    counts,
    judge_scenes,
    open_scene_judge,
    stated,
)
from bedstone.runtime import pick_device, pick_precision
from scene_learning import (
    SceneLearning,
    accuracy,
    drawn,
    grid_loss,
    grid_target,
    in_scene,
    train_scene_judge,
)

RED, STAR, BLUE = ("circle", "red"), ("star", "green"), ("star", "blue")


def test_what_is_stated():
    assert stated("a red circle") == {RED: 1}
    assert stated("two red circles and a green star on a meadow") == {RED: 2, STAR: 1}
    assert stated("a red circle and a red circle") == {RED: 2}
    assert stated("a picture of a large striped blue star in the top left") == {BLUE: 1}
    assert stated("a circle and three green objects") == {("circle", ""): 1, ("", "green"): 3}
    assert stated("a red circle and no squares") == {RED: 1}
    for text in ("a lovely day", "two objects", "no circles", ""):
        with pytest.raises(BedstoneError, match="no thing"):
            stated(text)


def test_first_captions_state_the_scene():
    for seed in range(100):
        scene = make_scene(seed, objects=(1, 2))
        assert stated(caption(scene)) == in_scene(scene)


def test_what_counts_as_there():
    asked = [Counter({RED: 1, STAR: 1})] * 5
    seen = [
        Counter({RED: 1, STAR: 1}),
        Counter({RED: 1, STAR: 2}),  # one too many: right, not exact
        Counter({RED: 1, BLUE: 1}),  # shapes alone
        Counter({("star", "red"): 1, ("circle", "green"): 1}),  # bound wrongly
        Counter(),
    ]
    found = judge_scenes(seen, asked)
    assert (found.right, found.exact, found.count) == (2 / 5, 1 / 5, 5)
    assert (found.things, found.shapes, found.colours) == (5 / 10, 4 / 5, 3 / 5)
    twice = judge_scenes([Counter({RED: 1})], [Counter({RED: 2})])
    assert (twice.right, twice.things) == (0, 0.5)
    loose = judge_scenes([Counter({RED: 1, STAR: 1})], [stated("a circle and a green object")])
    assert loose.right == 1
    with pytest.raises(BedstoneError, match="1 pictures and 2"):
        judge_scenes(seen[:1], asked[:2])
    with pytest.raises(BedstoneError, match="expected one"):
        judge_scenes([], [])


def test_targets_hold_each_thing_once():
    config = SceneGridConfig()
    for seed in range(60):
        scene = make_scene(seed, split="all", objects=(1, 3))
        target = torch.from_numpy(grid_target(scene, config.side))
        assert float(target[:, 1:9].sum()) == pytest.approx(len(scene.objects), abs=1e-5)
        assert float(target[:, 9:].sum()) == pytest.approx(len(scene.objects), abs=1e-5)
        # A network that says just this counts what is there.
        cells = torch.cat([target[:, :1].logit(1e-6), target[:, 1:].clamp(min=1e-9).log()], 1)
        seen = counts(cells[None], config)[0]
        kinds = {(s, c): int(n) for (s, c), n in in_scene(scene).items()}
        assert float(seen.sum()) == pytest.approx(len(scene.objects), abs=0.2)
        assert int(seen.round().sum()) == sum(kinds.values())
    one = make_scene(3, objects=(1, 1))
    place = torch.from_numpy(grid_target(one, 8)[:, 0].sum(0))
    middle = (torch.arange(8) + 0.5) / 8
    assert float((place.sum(0) * middle).sum()) == pytest.approx(one.objects[0].x, abs=1e-3)
    assert float((place.sum(1) * middle).sum()) == pytest.approx(one.objects[0].y, abs=1e-3)


def test_the_loss_is_least_at_the_target():
    config = SceneGridConfig()
    scene = make_scene(5, split="all", objects=(2, 2))
    target = torch.from_numpy(grid_target(scene, 8))[None]
    best = [target[:, :, :1].logit(1e-6), target[:, :, 1:].clamp(min=1e-9).log()]
    best = torch.cat(best, 2)
    least = grid_loss(best, target, config)
    for seed in range(3):
        noise = torch.randn(best.shape, generator=torch.Generator().manual_seed(seed))
        assert grid_loss(best + noise, target, config) > least
    assert grid_loss(torch.zeros_like(best), target, config) > 5 * least


def test_it_learns_and_is_kept(tmp_path):
    learning = SceneLearning(SceneGridConfig(width=8), steps=12, batch=16, objects=(1, 2))
    losses = []
    fp32 = pick_precision("fp32", pick_device("cpu"))
    again = []
    for kept in (losses, again):
        judge = train_scene_judge(learning, precision=fp32, told=None, measured=20)
        kept.append({key: value.clone() for key, value in judge.network.state_dict().items()})
    assert all((losses[0][key] == again[0][key]).all() for key in losses[0])  # by its seed
    scenes = [make_scene(n, split="all", objects=(1, 2)) for n in range(32)]
    target = torch.stack([torch.from_numpy(grid_target(scene, 8)) for scene in scenes])
    pictures = drawn(scenes, 32)
    before = build(learning.network, seed=0).eval()
    first, last = (
        grid_loss(n(pictures), target, learning.network) for n in (before, judge.network)
    )
    assert last < first
    assert set(judge.record["metrics"]) >= {"one", "two", "two_held_out", "pair_least", "others"}
    opened = open_scene_judge(judge.save(tmp_path / "judge"))
    assert (opened.counts(pictures) == judge.counts(pictures)).all()
    assert opened.record["metrics"] == judge.record["metrics"]


def test_pictures_that_cannot_be_judged_are_named():
    judge = SceneJudge(build(SceneGridConfig(width=8), seed=0))
    with pytest.raises(BedstoneError, match="pictures of shape"):
        judge.counts(torch.zeros(1, 3, 16, 16))
    lost = torch.zeros(2, 3, judge.size, judge.size)
    lost[1, 0, 3] = torch.nan
    with pytest.raises(BedstoneError, match="picture 1 holds values that are not finite"):
        judge.counts(lost)


class Knowing(SceneJudge):
    """One that knows the drawings it is shown."""

    def __init__(self, miss):
        super().__init__(build(SceneGridConfig(width=4), seed=0))
        self.miss = miss

    def things(self, pictures):
        found = []
        for number, picture in enumerate(pictures):
            splits = (("all", 1), ("all", 2), ("test", 2))
            scenes = [make_scene(3 * 10**9 + number, split=s, objects=(n, n)) for s, n in splits]
            scene = next(s for s in scenes if (drawn([s], 32)[0] == picture).all())
            there = in_scene(scene)
            found.append(Counter() if self.miss(there) else there)
        return found


def test_its_accuracy():
    perfect = accuracy(Knowing(lambda there: False), 40)
    assert all(perfect[key] == 1 for key in ("one", "two", "two_exact", "two_held_out"))
    assert perfect["pair_least"] == 1 and perfect["others"] < 0.1
    held = set(HELD_OUT["test"])
    blind = accuracy(Knowing(lambda there: bool(held & set(there))), 40)
    assert blind["two_held_out"] == 0 and blind["two"] > 0.5 and blind["pair_least"] == 0


def test_bad_folders(tmp_path):
    with pytest.raises(BedstoneError, match="python bench"):
        open_scene_judge(tmp_path)
    judge = SceneJudge(build(SceneGridConfig(width=4), seed=0))
    folder = judge.save(tmp_path / "judge")
    with pytest.raises(BedstoneError, match=r"it reads \(B, 3, 32, 32\)"):
        judge.counts(torch.zeros(1, 3, 64, 64))
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"width": 4', '"width": 6'))
    with pytest.raises(BedstoneError, match="not what config"):
        open_scene_judge(folder)
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(BedstoneError, match="gpt2"):
        open_scene_judge(folder)
