"""`bedstone evaluate --task`: results of tasks on labelled rows, scored by their metrics."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bedstone.checkpoints.model import Model
from bedstone.cli import main
from bedstone.data.dataset import Dataset
from bedstone.data.fields import FIELDS
from bedstone.data.images.processor import plain_processor
from bedstone.errors import BedstoneError
from bedstone.evaluate.tasks import METRICS, OWN, measured_tasks, metric_of
from bedstone.models.heads import HeadConfig
from bedstone.models.vit import network as vit
from bedstone.models.vit.network import ViTConfig
from bedstone.tasks.pipeline import TASKS, task_class
from image_text_models import told_model
from small_models import NLI, SENTENCES, TAGS, saved


def rows(path: Path, *lines: dict) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def figures(capsys, *words) -> dict:
    assert main(["evaluate", *map(str, words), "--device", "cpu", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", ["translations", "summaries"])
def test_written_texts_are_scored_beside_their_sources(name):
    right = "This is a house."
    row = {"document": "Ein Haus.", "summary": [right, "One house."]}
    metric = METRICS[name](Dataset([row] * 2, "made"), None)
    assert metric.inputs() == ["Ein Haus."] * 2
    for results in ([{"summary_text": right}] * 2, [[{"translation_text": right}]] * 2):
        found = metric.score(results, 0)
        assert found.score == pytest.approx(1) and found.rows == 2 and found.signatures


def test_what_tasks_say_of_their_metrics():
    for name in TASKS:
        kind = task_class(name)
        assert bool(kind.metric) == bool(kind.fields), name
        assert not kind.metric or kind.metric in METRICS or kind.metric in OWN, name
        assert set(kind.fields) <= FIELDS.keys(), name
    assert len(measured_tasks()) >= 12
    with pytest.raises(BedstoneError, match=r"feature-extraction has no metric.*fill-mask"):
        metric_of("feature-extraction")
    with pytest.raises(BedstoneError, match="perhaps 'fill-mask'"):
        metric_of("fill-masc")


def test_a_classifier_has_the_figures_of_its_own_evaluation(tmp_path, capsys):
    model = saved(tmp_path, NLI)
    data = rows(
        tmp_path / "rows.jsonl",
        *(
            {"text": text, "text_pair": SENTENCES[0], "label": NLI.labels[number % 3]}
            for number, text in enumerate(SENTENCES[:4])
        ),
    )
    own = figures(capsys, model, data, "--precision", "fp32")
    task = figures(capsys, model, data, "--task", "text-classification", "--precision", "fp32")
    found = task["text-classification"]
    assert own.pop("loss") > 0
    assert found == own


def test_tags_are_those_of_the_own_evaluation(tmp_path, capsys):
    model = saved(tmp_path, TAGS)
    words = [sentence.split() for sentence in SENTENCES[:3]]
    data = rows(
        tmp_path / "rows.jsonl",
        *({"tokens": each, "ner_tags": ["B-PER"] + ["O"] * (len(each) - 1)} for each in words),
    )
    own = figures(capsys, model, data, "--precision", "fp32")
    task = figures(capsys, model, data, "--task", "ner", "--precision", "fp32")
    assert own.pop("loss") > 0
    assert task["token-classification"] == own


def test_answers(tmp_path, capsys):
    model = saved(tmp_path, HeadConfig("spans"))
    answer = {"text": ["Paris"], "answer_start": [SENTENCES[0].index("Paris")]}
    data = rows(
        tmp_path / "rows.jsonl",
        {"question": "from where?", "context": SENTENCES[0], "answers": answer},
        {"question": "who?", "context": SENTENCES[1], "answers": {"text": [], "answer_start": []}},
    )
    found = figures(capsys, model, data, "--task", "question-answering")["question-answering"]
    assert 0 <= found["f1"] <= 1 and found["rows"] == 2


def test_zero_shot_and_similarity(tmp_path, capsys):
    model = saved(tmp_path, NLI)
    data = rows(
        tmp_path / "rows.jsonl",
        *(
            {"text": text, "label": "sport" if n % 2 else "film"}
            for n, text in enumerate(SENTENCES)
        ),
    )
    found = figures(capsys, model, data, "--task", "zero-shot-classification")
    assert found["zero-shot-classification"]["labels"] == ["film", "sport"]
    body = saved(tmp_path / "body", HeadConfig("pooled"))
    data = rows(
        tmp_path / "pairs.jsonl",
        *(
            {"text": SENTENCES[0], "text_pair": text, "label": float(n)}
            for n, text in enumerate(SENTENCES)
        ),
    )
    found = figures(capsys, body, data, "--task", "sentence-similarity")["sentence-similarity"]
    assert -1 <= found["spearman"] <= 1
    assert main(["evaluate", str(body), data, "--task", "text-classification"]) == 2
    assert "needs a head for labels" in capsys.readouterr().err


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("images")
    random, lines = np.random.default_rng(0), []
    for number in range(6):
        pixels = random.integers(0, 255, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append(
            {
                "file_name": f"{number}.png",
                "text": f"a {('red', 'blue', 'small')[number % 3]} thing",
                "question": ["is it red?", "what is it?"],
                "answer": ["yes" if number % 2 else "no", "a thing"],
            }
        )
    return rows(folder / "metadata.jsonl", *lines)


@pytest.mark.parametrize(
    ("kind", "task", "own"),
    [
        ("answers", "visual-question-answering", "answers"),
        ("captions", "image-to-text", "captions"),
        ("matching", "image-text-matching", "matching"),
    ],
)
def test_images_with_texts(kind, task, own, images, tmp_path, capsys):
    model = told_model(kind).save(tmp_path / "model")
    words = ("--precision", "fp32")
    measured = figures(capsys, model, images, *words)[own]
    found = figures(capsys, model, images, "--task", task, *words)[task]
    if task == "image-to-text":  # tasks never write less than the scorer does
        assert found["kind"] == measured["kind"]
        return
    if task == "visual-question-answering":
        assert found == measured
    else:
        assert found["rows"] == measured["rows"]


def test_labels_of_images(images, tmp_path, capsys):
    labelled = rows(
        Path(images).parent / "labelled.jsonl",
        *({"image": f"{number}.png", "label": ("dog", "cat")[number % 2]} for number in range(6)),
    )
    config = ViTConfig(
        image_size=16,
        patch=8,
        width=16,
        layers=1,
        heads=2,
        head=HeadConfig("sequence", ("cat", "dog")),
    )
    model = Model(vit.build(config, seed=1), processor=plain_processor(16)).save(tmp_path / "vit")
    own = figures(capsys, model, labelled, "--precision", "fp32")
    task = figures(capsys, model, labelled, "--task", "image-classification", "--precision", "fp32")
    assert own.pop("loss") > 0
    assert task["image-classification"] == own
