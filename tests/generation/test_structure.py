"""Structured output: what comes out is of the form asked for, whatever the network would say."""

import importlib
import json
import re

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bedstone
from bedstone.checkpoints.model import Model
from bedstone.cli import main
from bedstone.data.text.train_tokenizer import END, train_bpe, train_wordpiece
from bedstone.errors import BedstoneError
from bedstone.generation.settings import GenerationSettings
from bedstone.generation.structure import read_form
from bedstone.generation.text import stream_text, write
from bedstone.models.gpt.network import GPTConfig, build
from image_text_models import sighted_model, told_model
from networks import randomise

TEXT = (
    'The cat {"name": "Ada", "age": 36, "tags": ["a", "b"]} true false null 0123456789 é 漢.\n' * 9
)
TOKENIZER = train_bpe([TEXT], 330, special_tokens=(END,))


@pytest.fixture(scope="module")
def model():
    """A GPT that says anything, with a long context."""
    config = GPTConfig(vocab_size=TOKENIZER.vocab_size, width=24, layers=2, heads=4, context=400)
    network = build(config)
    randomise(network, seed=5)
    return Model(network.eval(), TOKENIZER)


def written(model, count=1, seed=0, most=200, temperature=1.0, **form):
    settings = GenerationSettings(
        max_new_tokens=most, seed=seed, do_sample=temperature > 0, top_k=0, **form
    )
    way = settings.resolve({}, tokenizer=model.tokenizer)
    texts = ["The", "cat name", "a"] * count
    return write(model.network, model.tokenizer, texts[:count], way, eos=model.end_ids)


SMALL = {"type": "string", "maxLength": 5}
SCHEMAS = [
    {"type": "boolean"},
    {"type": "null"},
    {"enum": ["red", "grün", 3, None, {"a": 1}]},
    {"const": {"k": [1, 2]}},
    {"type": "integer", "minimum": -20, "maximum": 300},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    SMALL,
    {"type": "string", "pattern": "^[a-c]{2,4}$"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "uuid"},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 4},
    {"type": "array", "prefixItems": [{"type": "null"}, SMALL], "items": False, "minItems": 2},
    {
        "type": "object",
        "properties": {"name": SMALL, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {"on": {"type": "boolean"}, "note": SMALL},
        "required": ["on"],
        "additionalProperties": False,
    },
    {"anyOf": [{"type": "boolean"}, {"type": "array", "items": {"type": "null"}, "maxItems": 2}]},
    {
        "$ref": "#/$defs/tree",
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {
                    "leaf": {"type": "boolean"},
                    "more": {"type": "array", "items": {"$ref": "#/$defs/leaf"}, "maxItems": 2},
                },
                "required": ["leaf", "more"],
                "additionalProperties": False,
            },
            "leaf": {"const": "x"},
        },
    },
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda each: json.dumps(each)[:40])
def test_json_follows_its_schema(schema, model):
    done = [one for seed in range(3) for one in written(model, 3, seed, json_schema=schema)]
    whole = [one for one in done if one.complete]
    assert len(whole) >= 6
    for one in whole:
        assert one.finish == "stop"
        jsonschema.validate(json.loads(one.text), schema)
    for one in done:
        assert one.complete or one.finish == "length"


@pytest.mark.parametrize(
    "expression", [r"[a-z]{3}-\d{2}", r"(yes|no)(, (yes|no)){0,3}", r"é+漢?\."]
)
def test_the_whole_text_matches_the_expression(expression, model):
    for one in written(model, 3, most=60, regex=expression):
        assert one.complete is bool(re.fullmatch(expression, one.text)) or one.finish == "length"
        assert one.complete or one.finish == "length"


CHOICES = ["a.b", "a.b.c", "x|y*", "\\d+", "(", "é\n漢", " two  spaces ", "#!-~", '"{}"']


def test_one_of_the_choices_is_written_to_the_letter(model):
    found = {one.text for seed in range(30) for one in written(model, 3, seed, choices=CHOICES)}
    assert found <= set(CHOICES)
    assert len(found) > 4


def test_a_grammar(model):
    grammar = 'start: sum\nsum: NUMBER ("+" NUMBER)*\nNUMBER: /[0-9]{1,3}/'
    for one in written(model, 3, most=40, grammar=grammar):
        if one.complete:
            assert re.fullmatch(r"\d{1,3}(\+\d{1,3})*", one.text)


@pytest.mark.parametrize("most", [1, 2, 5, 9])
def test_what_is_cut_is_not_whole(model, most):
    schema = {"type": "string", "minLength": 40, "maxLength": 50}
    (one,) = written(model, most=most, json_schema=schema)
    assert (one.finish, one.complete) == ("length", False)
    # a number that may end anywhere, and is cut, isn't the number that was meant
    (digits,) = written(model, most=most, regex=r"[0-9]+x?", temperature=0.0)
    assert digits.complete == (digits.finish == "stop")


def test_nothing_asked_for_says_nothing(model):
    assert written(model, most=3)[0].complete is None


def test_rows_follow_forms_of_their_own_alone_and_in_company(model):
    schema = SCHEMAS[12]
    together = written(model, 3, seed=4, json_schema=schema)
    settings = GenerationSettings(max_new_tokens=200, do_sample=True, top_k=0, json_schema=schema)
    way = settings.resolve({}, tokenizer=TOKENIZER)
    for row, (text, one) in enumerate(zip(["The", "cat name", "a"], together, strict=True)):
        (alone,) = write(model.network, TOKENIZER, [text], way, eos=model.end_ids, seeds=[4 + row])
        assert (alone.text, alone.complete) == (one.text, one.complete)


def test_drafts_change_nothing(model):
    schema = {"type": "array", "items": {"const": "Ada"}, "minItems": 5, "maxItems": 7}
    plain = written(
        model, most=300, temperature=0.0, json_schema=schema, prompt_lookup_num_tokens=0
    )
    ahead = written(
        model, most=300, temperature=0.0, json_schema=schema, prompt_lookup_num_tokens=5
    )
    assert plain[0].ids == ahead[0].ids and plain[0].complete


def test_steps_say_it_at_the_end_alone(model):
    settings = GenerationSettings(choices=["The cat", "true"], max_new_tokens=30)
    way = settings.resolve({}, tokenizer=TOKENIZER)
    pieces = list(stream_text(model.network, TOKENIZER, ["a"], way, eos=model.end_ids))
    assert [piece.step.complete for piece in pieces] == [None] * (len(pieces) - 1) + [True]


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"json_schema": {"not": {"type": "string"}}}, r"json_schema: .*not"),
        ({"json_schema": {"type": "object", "unevaluatedProperties": False}}, "unevaluated"),
        ({"json_schema": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"json_schema": {"$ref": "http://example.com/a.json"}}, "example.com"),
        ({"json_schema": {"$ref": "#/$defs/missing"}}, "json_schema"),
        ({"json_schema": {"type": "word"}}, "word"),
        ({"json_schema": {"type": "object", "x-guidance": {"lenient": True}}}, "x-guidance"),
        ({"json_schema": {"enum": []}}, "json_schema"),
        ({"json_schema": '{"type"'}, "no JSON"),
        ({"json_schema": 3}, "expected an object"),
        ({"json_schema": "[1]"}, "expected an object"),
        ({"regex": "(a"}, "regex"),
        ({"regex": "(?=a)b"}, "regex"),
        ({"regex": 3}, "regex"),
        ({"choices": [1, "a"]}, "choices"),
        ({"choices": ["a", ""]}, "choices"),
        ({"grammar": "start: missing"}, "missing"),
        ({"grammar": 3}, "grammar"),
        ({"json_schema": {"const": float("nan")}}, "JSON"),
        ({"json_schema": "[" * 100_000}, "no JSON"),
        ({"json_schema": '{"a":' * 300 + "1" + "}" * 300}, "json_schema"),
        ({"json_schema": {"$ref": "#"}}, "json_schema"),
        ({"json_schema": []}, "allows nothing"),
        ({"regex": r"[^\s\S]"}, "regex"),
        ({"choices": []}, "allows nothing"),
        ({"regex": ""}, "allows nothing"),
        ({"regex": "a", "choices": ["a"]}, "regex: was given beside choices"),
        ({"choices": ["a"], "stop": "b"}, "stop"),
        ({"choices": ["a"], "num_beams": 3}, "choices"),
        ({"json_schema": "@schema.json"}, "no JSON"),  # a server's files are nobody's
    ],
)
def test_what_is_not_understood_is_refused_first(form, message):
    with pytest.raises(BedstoneError, match=message):
        GenerationSettings(**form).resolve({}, tokenizer=TOKENIZER)


def test_any_object(model):
    assert json.loads(written(model, json_schema=True, most=300)[0].text or "{}") is not None


def test_without_the_library_it_says_what_to_install(monkeypatch):
    real = importlib.import_module

    def absent(name):
        if name == "llguidance":
            raise ImportError(name)
        return real(name)

    monkeypatch.setattr("bedstone.generation.structure.importlib.import_module", absent)
    with pytest.raises(BedstoneError, match=r"bedstone\[structured\]"):
        read_form({"regex": "a"}, train_bpe([TEXT], 300, special_tokens=(END,)))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4, unique=True),
    st.integers(0, 9),
)
def test_any_choices(texts, seed):
    texts = [text.encode(errors="replace").decode() for text in texts]
    form = read_form({"choices": texts}, TOKENIZER)
    guide, random, ids = form.start(), np.random.default_rng(seed), []
    for _ in range(200):
        allowed = set(guide.allowed().numpy().nonzero()[0].tolist()) - {TOKENIZER.eos_id}
        if guide.complete and (not allowed or random.random() < 0.5):
            break
        ids.append(int(random.choice(sorted(allowed))))
        guide.take(ids[-1])
    assert guide.complete and TOKENIZER.decode(ids) in texts


def test_words_with_spaces_between_them():
    known = train_wordpiece(["a red circle and two blue stars , it 's one's own"] * 9, 120)
    choices = ["a red circle", "a red", "two blue stars", "stars, it"]
    form, found = read_form({"choices": choices}, known), set()
    for seed in range(30):
        guide, random, ids = form.start(), np.random.default_rng(seed), []
        while not guide.ended and not (guide.complete and random.random() < 0.5):
            ids.append(int(random.choice(guide.allowed().numpy().nonzero()[0])))
            guide.take(ids[-1])
        assert guide.complete
        found.add(known.decode(ids).strip())
    assert found == set(choices)
    for wrong in ({"json_schema": True}, {"grammar": 'start: "a"'}, {"regex": "a"}):
        with pytest.raises(BedstoneError, match="Give choices"):
            read_form(wrong, known)
    with pytest.raises(BedstoneError, match="漢"):
        read_form({"choices": ["a", "漢"]}, known)
    with pytest.raises(BedstoneError, match="'Red' is written 'red'"):
        read_form({"choices": ["Red"]}, known)


COLOURS = ["a red circle", "two stars"]


def test_captions_and_answers_about_images():
    picture = np.zeros((16, 16, 3), dtype=np.uint8)
    model = told_model()
    caption = bedstone.pipeline("image-to-text", model, device="cpu")
    (one,) = caption(picture, choices=COLOURS, max_new_tokens=20)
    assert one["generated_text"] in COLOURS and one["complete"] is True
    (cut,) = caption(picture, choices=["a red circle", "two stars"], max_new_tokens=1)
    assert cut["complete"] is False
    answer = bedstone.pipeline("visual-question-answering", model, device="cpu")
    found = answer(picture, question="what?", choices=COLOURS, max_new_tokens=20, top_k=1)
    assert found[0]["answer"] in COLOURS and found[0]["complete"] is True
    learnt = bedstone.pipeline("visual-question-answering", model, device="cpu")
    learnt.known_answers = ("one", "two")
    found = learnt(picture, question="what?", choices=COLOURS, max_new_tokens=20, top_k=3)
    assert found[0]["answer"] in COLOURS
    schema = {"enum": ["red", "blue"]}
    sighted = bedstone.pipeline("image-to-text", sighted_model(), device="cpu")
    (whole,) = sighted(picture, json_schema=schema, max_new_tokens=20)
    assert json.loads(whole["generated_text"]) in ("red", "blue") and whole["complete"]


def test_the_pipeline_and_the_model_say_what_was_cut(model):
    task = bedstone.pipeline("text-generation", model, return_full_text=False)
    (one,) = task("The", json_schema=SCHEMAS[12], max_new_tokens=150)
    assert one["complete"]
    jsonschema.validate(json.loads(one["generated_text"]), SCHEMAS[12])
    (cut,) = task("The", json_schema=SCHEMAS[12], max_new_tokens=2)
    assert cut["complete"] is False
    assert "complete" not in task("The", max_new_tokens=2)[0]
    assert model.generate("The", choices=["yes", "no"]) in ("yes", "no")
    with pytest.raises(BedstoneError, match="cut before it was whole"):
        model.generate("The", choices=["yes, it is", "no, it isn't"], max_new_tokens=1)


def test_the_command_line(model, tmp_path, capsys):
    model.save(tmp_path / "model")
    words = ["generate", str(tmp_path / "model"), "The ", "--max-new-tokens"]
    assert main([*words, "90", "--choices", "yes", "--choices", "no"]) == 0
    assert capsys.readouterr().out.strip() in ("The yes", "The no")
    assert main([*words, "90", "--json-schema", '{"enum": ["Ada"]}', "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["generated_text"] == '"Ada"' and told["complete"] is True
    (tmp_path / "schema.json").write_text('{"enum": ["Eva"]}')
    held = f"@{tmp_path / 'schema.json'}"
    assert main([*words, "90", "--json-schema", held]) == 0
    assert capsys.readouterr().out.strip() == 'The "Eva"'
    assert main([*words, "90", "--json-schema", f"{held}x"]) == 2
    assert "schema.jsonx" in capsys.readouterr().err
    assert main([*words, "2", "--regex", "[a-z]{30}"]) == 2
    assert "cut before" in capsys.readouterr().err
    assert main([*words, "2", "--json-schema", '{"not": {}}']) == 2
    assert capsys.readouterr().out == ""
