"""Audits: scores against plain loops over the network, what files may say, what is written."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import bedstone
from bedstone.checkpoints.card import Measured, keep_figures
from bedstone.cli import main
from bedstone.data.text.encode import text_input
from bedstone.errors import BedstoneError
from bedstone.inspect.audit import read_plan, run_audit, write_audit_page
from bedstone.inspect.audit_checks import Audited
from bedstone.inspect.output_checks import RatesCheck, SearchCheck, only_value
from bedstone.inspect.text_checks import ChoicesCheck, PairsCheck, shared_places
from bedstone.metrics.bias import group_differences
from bedstone.models.heads import HeadConfig
from image_models import clip_model, pictures
from small_models import decoder, model

PAIRS = [
    ("the weather is a film", "the sport is a film", "a"),
    ("an example of sport", "an example of weather or film", "b"),
]


def pairs_file(folder: Path) -> Path:
    path = folder / "pairs.jsonl"
    rows = [{"more": a, "less": b, "bias_type": kind} for a, b, kind in PAIRS]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def checks(folder: Path, *each: dict) -> Path:
    path = folder / "checks.yaml"
    path.write_text(yaml.safe_dump({"checks": list(each)}), encoding="utf-8")
    return path


def test_shared_tokens_keep_their_order():
    assert shared_places([1, 2, 3, 4], [1, 9, 9, 3, 4]) == ([0, 2, 3], [0, 3, 4])
    assert shared_places([1], [2]) == ([], [])


@torch.inference_mode()
def test_pseudo_log_likelihoods_are_those_of_a_plain_loop(tmp_path):
    opened = model(HeadConfig("language"))
    check = PairsCheck(data=str(pairs_file(tmp_path)))
    found = check.scores(Audited(opened), [pair[:2] for pair in PAIRS])
    known = opened.tokenizer
    for number, pair in enumerate(PAIRS):
        rows = [text_input(known, text) for text in pair[:2]]
        own = [[at for at, of in enumerate(row.sources) if of is not None] for row in rows]
        words = [[row.ids[at] for at in places] for row, places in zip(rows, own, strict=True)]
        kept = shared_places(*words)
        for side, row in enumerate(rows):
            total = 0.0
            for place in kept[side]:
                place, token = own[side][place], words[side][place]
                ids = torch.tensor([row.ids])
                ids[0, place] = known.mask_id
                logits = opened.network(ids)[0, place]
                total += float(logits.log_softmax(-1)[token])
            assert found[number, side] == pytest.approx(total, abs=1e-5)


@torch.inference_mode()
def test_a_decoders_shared_and_whole_likelihoods_are_those_of_a_plain_loop(tmp_path):
    opened = decoder(HeadConfig("language"), "llama")
    where = str(pairs_file(tmp_path))
    given = [pair[:2] for pair in PAIRS]
    shared = PairsCheck(data=where).scores(Audited(opened), given)
    whole = PairsCheck(data=where, score="whole").scores(Audited(opened), given)
    known = opened.tokenizer
    first = known.eos_id if known.bos_id is None else known.bos_id
    for number, pair in enumerate(given):
        rows = [[first, *known.encode(text)] for text in pair]
        kept = shared_places(rows[0][1:], rows[1][1:])
        for side, ids in enumerate(rows):
            logs = opened.network(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
            each = [float(logs[place, token]) for place, token in enumerate(ids[1:])]
            assert whole[number, side] == pytest.approx(sum(each), abs=1e-4)
            assert shared[number, side] == pytest.approx(
                sum(each[place] for place in kept[side]), abs=1e-4
            )


@torch.inference_mode()
def test_choices_are_shares_of_the_words_probability():
    opened = decoder(HeadConfig("language"), "gpt2")
    check = ChoicesCheck(
        prompts=["the sport", "an example"], words={"a": ["is"], "b": ["of", "or"]}
    )
    part = check.measure(Audited(opened))
    known = opened.tokenizer
    logs = []
    for prompt in check.prompts:
        row = []
        for word in ("is", "of", "or"):
            ids, end = known.encode(prompt), known.encode(f"{prompt} {word}")
            logits = opened.network(torch.tensor([end[:-1]]))[0].log_softmax(-1)
            row.append(sum(float(logits[i - 1, end[i]]) for i in range(len(ids), len(end))))
        logs.append(row)
    likely = np.exp(np.array(logs))
    shares = likely[:, :1].sum(1) / likely.sum(1)
    assert part.measures[0].value == pytest.approx(shares.mean(), abs=1e-5)
    assert part.measures[0].value + part.measures[1].value == pytest.approx(1.0)


def test_groups_and_templates_of_a_classifier(tmp_path):
    opened = model(HeadConfig("sequence", ("no", "yes")))
    random = np.random.default_rng(0)
    words = ["sport", "weather", "film", "example"]
    rows = [
        {
            "text": " ".join(random.choice(words, 4)),
            "label": str(random.choice(["no", "yes"])),
            "side": str(random.choice(["left", "right"])),
            "age": str(random.choice(["old", "young"])),
        }
        for _ in range(80)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    path = checks(
        tmp_path,
        {"kind": "groups", "data": str(data), "groups": ["side", "age"], "favourable": "yes"},
        {
            "kind": "templates",
            "groups": {"a": ["sport"], "b": ["film", "weather"]},
            "slots": {"what": ["an example", "film"]},
            "templates": ["{group} is {what}", "the {group} of sport"],
        },
        {"kind": "search", "data": str(data), "group": "side", "queries": ["film"], "top": 5},
    )
    audit = run_audit(opened, read_plan(path), quiet=True)
    assert set(audit.left_out) == {"search"}
    groups, templates = audit.parts
    ids = [{**row, "id": str(number)} for number, row in enumerate(rows)]
    data.write_text("\n".join(map(json.dumps, ids)), encoding="utf-8")
    many = {"kind": "groups", "data": str(data), "groups": ["id"], "favourable": "yes"}
    with pytest.raises(BedstoneError, match="id has 80 values in 80 rows"):
        run_audit(opened, read_plan(checks(tmp_path, many)), quiet=True)
    assert len(groups.measures) == 15  # five of each column, and of both together
    said = opened_labels(opened, rows)
    truth = np.array([row["label"] == "yes" for row in rows])
    side = np.array([row["side"] == "right" for row in rows]).astype(int)
    plain = group_differences(truth, said, side, ["left", "right"], resamples=2000)
    assert [each.value for each in groups.measures[:5]] == [each.value for each in plain]
    assert "label yes" in next(iter(groups.tables))
    assert len(templates.measures) == 1  # of two labels one is enough
    assert templates.measures[0].rows == 3
    page = write_audit_page(audit, tmp_path / "audit.html")
    assert "Audit of" in page.read_text(encoding="utf-8")


def opened_labels(opened, rows):
    task = bedstone.pipeline("text-classification", opened)
    return np.array([task(row["text"])[0]["label"] == "yes" for row in rows])


def test_search_counts_who_stands_first(tmp_path):
    opened = clip_model()
    rows = []
    for number, picture in enumerate(pictures(8)):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "group": "a" if number % 2 else "b"})
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    check = SearchCheck(data=str(data), group="group", queries=["red", "blue"], top=4)
    part = check.measure(Audited(opened))
    assert [each.aim for each in part.measures] == [0.5] * 4
    for first, second in zip(part.measures[::2], part.measures[1::2], strict=True):
        assert first.value + second.value == pytest.approx(1.0)
    with pytest.raises(BedstoneError, match="Take fewer"):
        SearchCheck(data=str(data), group="group", queries=["red"], top=8).measure(Audited(opened))


@pytest.mark.parametrize("made", [model, lambda head: decoder(head, "gpt2")])
def test_pairs_with_nothing_to_compare_are_left_out(tmp_path, made):
    rows = [PAIRS[0], ("a film", "a film", "b"), ("go", "uu", "b")]
    path = tmp_path / "pairs.jsonl"
    text = [json.dumps({"more": a, "less": b, "bias_type": kind}) for a, b, kind in rows]
    path.write_text("\n".join(text), encoding="utf-8")
    part = PairsCheck(data=str(path)).measure(Audited(made(HeadConfig("language"))))
    assert part.measures[0].rows == 1
    assert part.measures[0].detects is None  # of one pair
    assert part.facts["pairs left out, with nothing to compare"] == 2
    path.write_text("\n".join(text[1:]), encoding="utf-8")
    with pytest.raises(BedstoneError, match="nothing to compare"):
        PairsCheck(data=str(path)).measure(Audited(made(HeadConfig("language"))))


def test_no_two_outputs_are_drawn_by_the_same_seed(monkeypatch):
    """A row draws by its call's seed plus its number: calls of consecutive seeds would overlap."""
    drawn = []

    def task(prompt, *, num_return_sequences, seed, **_):
        drawn.extend(range(seed, seed + num_return_sequences))
        return [{"generated_text": "sport"}] * num_return_sequences

    monkeypatch.setattr(Audited, "task", lambda self, name, **options: task)
    opened = decoder(HeadConfig("language"), "llama")
    values = {"a": ["sport"], "b": ["film"]}
    RatesCheck(prompts=["x", "y", "z"], samples=7, values=values).measure(Audited(opened))
    assert len(drawn) == len(set(drawn)) == 21


def test_words_are_found_whole():
    values = {"woman": ["she", "a woman"], "man": ["he"]}
    assert only_value("Then She left.", values) == "woman"
    assert only_value("the sheep", values) == ""
    assert only_value("he and a woman", values) == ""


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"kind": "pair", "data": "x"}, "perhaps 'pairs'|pairs"),
        ({"kind": "pairs"}, "data is missing"),
        ({"kind": "pairs", "data": "x", "rows": 3}, "unknown key 'rows'"),
        ({"kind": "choices", "prompts": ["a"], "words": {"a": ["b"]}}, "at least 2 lists"),
        ({"kind": "choices", "prompts": ["a"], "words": {"a": ["b"], "c": ["d"]}}, "at least two"),
        (
            {"kind": "choices", "prompts": ["a", "b"], "words": {"a": ["b"], "c": ["b"]}},
            "'b' is there twice",
        ),
        (
            {
                "kind": "choices",
                "prompts": ["a", "b"],
                "words": {"a": ["b"], "c": ["d"]},
                "expected": {"a": 0.9, "c": 0.4},
            },
            "sum to 1",
        ),
        (
            {"kind": "templates", "groups": {"a": ["b"], "c": ["d"]}, "templates": ["no slot"]},
            "has no {group}",
        ),
        ({"kind": "associations", "targets": {"a": ["b"]}}, "at least 2 lists"),
        ({"kind": "groups", "data": "x", "groups": ["g"]}, "favourable"),
        (
            {"kind": "rates", "prompts": ["a"], "values": {"a": "b", "c": "d"}, "samples": 0},
            "samples",
        ),
    ],
)
def test_wrong_checks_are_refused_before_a_model_is_opened(tmp_path, given, wanted):
    with pytest.raises(BedstoneError, match=wanted):
        read_plan(checks(tmp_path, given))


def test_the_command_keeps_the_audit_in_the_card(tmp_path, capsys):
    folder = decoder(HeadConfig("language"), "llama").save(tmp_path / "model")
    path = checks(
        tmp_path,
        {"kind": "pairs", "data": str(pairs_file(tmp_path))},
        {"kind": "rates", "prompts": ["the"], "samples": 3, "tokens": 4,
         "values": {"a": ["sport", "weather"], "b": ["film", "example", "is", "of", "or"]}},
    )  # fmt: skip
    plan = read_plan(path)
    assert [each.kind for each in plan.checks] == ["pairs", "rates"]
    only = checks(tmp_path, {"kind": "pairs", "data": str(pairs_file(tmp_path))})
    page = tmp_path / "audit.html"
    arguments = ["audit", str(folder), "--checks", str(only), "--keep", "--page", str(page)]
    assert main(arguments) == 0
    assert "measures differ" in capsys.readouterr().out
    assert page.is_file()
    record = json.loads((folder / "bedstone.json").read_text(encoding="utf-8"))["audit"]
    assert record["parts"][0]["measures"][0]["rows"] == 2
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.count("## Audit") == 1
    assert main([*arguments, "--overwrite"]) == 0  # again: the section is replaced
    assert (folder / "README.md").read_text(encoding="utf-8").count("## Audit") == 1
    opened = bedstone.load(folder)  # verified
    keep_figures(folder, opened, [Measured("loss", 1.0, 0.9, 1.1, 5, "ab", "c", "fp32")])
    card = (folder / "README.md").read_text(encoding="utf-8")  # figures leave the audit there
    assert card.count("## Audit") == card.count("## Figures") == 1
    bedstone.load(folder).save(tmp_path / "again")  # whose weights may be others
    assert "## Audit" not in (tmp_path / "again" / "README.md").read_text(encoding="utf-8")


def test_a_model_that_no_check_fits_is_named(tmp_path, capsys):
    folder = decoder(HeadConfig("language"), "llama").save(tmp_path / "model")
    path = checks(
        tmp_path,
        {"kind": "groups", "data": "rows.csv", "groups": ["g"], "favourable": "yes"},
    )
    assert main(["audit", str(folder), "--checks", str(path)]) != 0
    assert "no check fits" in capsys.readouterr().err
