"""What outputs must hold, begin with and avoid, and how much of their sources was read."""

import json

import pytest
import torch

import bedstone
from bedstone.cli import main
from bedstone.data.text.encode import source_ids
from bedstone.data.text.glossary import words_of_text
from bedstone.errors import BedstoneError
from bedstone.tasks.text.text2text_generation import EVEN, common
from encoder_decoders import HELD_OUT, in_words, small_model, trained_model
from small_models import SENTENCES

LONG = " ".join(SENTENCES[:4] * 3)
NONE = {"wanted": 0, "honoured": 0}


@pytest.fixture(scope="module")
def model():
    return trained_model()


@pytest.fixture(scope="module")
def translate(model):
    return bedstone.pipeline("translation", model)


def texts(results):
    return [one["translation_text"] for one in results]


def test_the_model_has_learnt(translate):
    found = texts(translate([str(number) for number in HELD_OUT]))
    right = [in_words(number) for number in HELD_OUT]
    assert sum(map(str.__eq__, found, right)) >= 0.9 * len(right)


# Glossaries.


def test_terms_of_sources_are_in_their_outputs_and_counted(translate):
    plain = texts(translate(["412", "45"]))
    found = translate(["412", "45", ""], glossary={"412": "dozen", "7": ["one", "two"]})
    assert "dozen" in words_of_text(found[0]["translation_text"])
    assert found[0]["terms"] == {"wanted": 1, "honoured": 1}
    assert found[1] == {"translation_text": plain[1], "terms": NONE}
    assert found[2] == {"translation_text": "", "terms": NONE}
    assert "terms" not in translate("412")[0]
    two = translate("412", glossary={"412": "dozen"}, num_return_sequences=2)
    assert [one["terms"]["honoured"] for one in two] == [1, 1]


def test_all_terms_of_many_sources_are_honoured(translate):
    terms = {str(n): in_words((n * 7) % 20) for n in range(100, 160)}
    found = translate(list(terms), glossary=terms, batch_size=32)
    assert sum(one["terms"]["wanted"] for one in found) == len(terms)
    assert all(one["terms"]["honoured"] == 1 for one in found)


def test_a_glossary_is_a_file_too_and_an_option_of_the_command(model, translate, tmp_path, capsys):
    file = tmp_path / "terms.csv"
    file.write_text("source,target\n412,dozen|dozens\n")
    expected = translate(["412", "45"], glossary={"412": "dozen|dozens"})
    assert translate(["412", "45"], glossary=file) == expected
    folder = str(model.save(tmp_path / "m"))
    words = ["run", "translation", folder, "412", "45", "--glossary", str(file), "--json"]
    assert main([*words, "--precision", "fp32"]) == 0
    lines = [json.loads(line)["result"] for line in capsys.readouterr().out.splitlines()]
    assert lines == [[one] for one in expected]
    assert main([*words, "--option", "glossary=x.csv"]) == 2
    assert "given twice" in capsys.readouterr().err
    assert main(["run", "fill-mask", folder, "x", "--glossary", str(file)]) == 2
    assert "--glossary: fill-mask takes none" in capsys.readouterr().err
    assert main([*words[:-2], str(tmp_path / "no.csv")]) == 2
    assert "no.csv" in capsys.readouterr().err


def test_each_part_of_a_long_source_has_its_own_terms():
    made = bedstone.pipeline("translation", small_model("bart"))
    (found,) = made(LONG, glossary={"Paris": "Zoë", "film": "dogs"}, max_new_tokens=12)
    rows = made.prepare(LONG, made.chosen(glossary={"Paris": "Zoë"})).parts
    assert found["parts"] == len(rows) > 2
    assert {len(row.words) for row in rows} == {0, 1}
    assert found["terms"]["wanted"] == found["terms"]["honoured"] == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_beams": 1}, "glossary: was given, and its terms are found by beams. Give num_beams"),
        ({"do_sample": True}, "glossary: was given"),
        ({"num_beam_groups": 2}, "num_beam_groups: is 2"),
        ({"glossary": {}}, "glossary: {}"),
        ({"glossary": 3}, "expected the name of a CSV file"),
        ({"glossary": {"a": ""}}, "glossary: 'a' stands for ''"),
        ({"glossary": {"": "a"}}, "glossary: ''"),
        ({"glossary": {"a": []}}, r"glossary: 'a' stands for \[\]"),
        ({"glossary": {"a": ["b", 3]}}, "expected a source term"),
    ],
)
def test_glossaries_that_cannot_be_honoured(options, said, translate):
    with pytest.raises(BedstoneError, match=said):
        translate("412", **{"glossary": {"412": "dozen"}, **options})


def test_a_term_that_has_no_room_is_named_with_its_row(translate):
    with pytest.raises(BedstoneError, match=r"inputs\[1\]: glossary: .*'412'.* leaves 2"):
        translate(["45", "412"], glossary={"412": "one hundred and twenty"}, max_new_tokens=2)
    with pytest.raises(BedstoneError, match=r"inputs\[0\]: glossary: .* leaves 2"):
        translate(["412"], glossary={"412": "one hundred"}, max_new_tokens=2, force_words="two two")


# What outputs begin with.


def test_outputs_begin_with_a_prefix_and_go_on_from_it(translate):
    whole = texts(translate(["412", "945"]))
    assert whole == ["four hundred and twelve", "nine hundred and forty five"]
    for beams in (1, 4):
        same = translate("412", target_prefix="four hundred", num_beams=beams)
        assert texts(same) == whole[:1]
        (other,) = texts(translate("412", target_prefix="six", num_beams=beams))
        assert other.startswith("six") and len(other) > 3
        each = translate(["412", "945", "412"], target_prefix=["six", "", None], num_beams=beams)
        assert texts(each) == [other, whole[1], whole[0]]
        many = translate(iter(["412", "945"]), target_prefix=("six", "nine"), num_beams=beams)
        assert [one[0]["translation_text"] for one in many] == [other, whole[1]]
    assert translate("", target_prefix="six") == [{"translation_text": ""}]
    sampled = translate("412", target_prefix="six", do_sample=True, seed=1, num_return_sequences=2)
    assert all(text.startswith("six") for text in texts(sampled))


def test_a_prefix_has_the_special_tokens_that_targets_have():
    model = small_model("bart")
    made = bedstone.pipeline("translation", model, return_tensors=True)
    plain = model.tokenizer.encode("the dogs")
    (found,) = made("a cat", target_prefix="the dogs")
    expected = [model.tokenizer.bos_id, *plain]  # as targets are learnt
    assert found["translation_token_ids"][: len(expected)] == expected
    for forced, before in ((model.tokenizer.bos_id, []), (7, [7])):
        model.generation["forced_bos_token_id"] = forced
        (found,) = made("a cat", target_prefix="the dogs")
        ids = found["translation_token_ids"]
        assert ids[: len(before) + len(expected)] == [*before, *expected]


def test_a_prefix_counts_for_the_first_part_and_for_its_terms(translate):
    made = bedstone.pipeline("translation", small_model("bart"), target_prefix="the dogs")
    rows = made.prepare(LONG, made.options).parts
    assert rows[0].begin and not any(row.begin for row in rows[1:])
    (found,) = made(LONG)
    assert found["translation_text"].startswith("the dogs")
    (found,) = translate("412", glossary={"412": "six"}, target_prefix="six hundred and one")
    assert found["terms"] == {"wanted": 1, "honoured": 1}
    assert found["translation_text"].split().count("six") == 1
    held = {"glossary": {"412": "six hundred and one"}, "target_prefix": "six hundred and one"}
    (found,) = translate("412", max_new_tokens=1, **held)
    assert found["terms"] == {"wanted": 1, "honoured": 1}


def test_prefixes_that_do_not_fit(translate):
    with pytest.raises(BedstoneError, match=r"target_prefix: 1 were given for more inputs"):
        translate(["1", "2"], target_prefix=["a"])
    with pytest.raises(BedstoneError, match=r"target_prefix: 2 were given for fewer inputs"):
        list(translate(iter(["1"]), target_prefix=["a", "b"]))
    with pytest.raises(BedstoneError, match="target_prefix: 3"):
        translate("1", target_prefix=3)
    with pytest.raises(BedstoneError, match=r"inputs\[1\]: target_prefix: .* Shorten it"):
        translate(["1", "2"], target_prefix=["a", "one two " * 60])


def test_alternatives_after_a_prefix(translate):
    found = translate("412", target_prefix="four hundred and", return_alternatives=3)
    assert texts(found)[0] == "four hundred and twelve"
    nexts = [text.removeprefix("four hundred and")[:4] for text in texts(found)]
    assert len(found) == len(set(nexts)) == 3
    assert all(text.startswith("four hundred and") for text in texts(found))
    again = translate(
        "412", target_prefix="four hundred and", return_alternatives=True, num_return_sequences=3
    )
    assert again == found
    with pytest.raises(BedstoneError, match="return_alternatives: 3 was given beside"):
        translate("412", return_alternatives=3, num_return_sequences=2)
    for fewer in ({"num_beams": 1}, {"do_sample": True}):
        with pytest.raises(BedstoneError, match="return_alternatives: True was given, which"):
            translate("412", return_alternatives=True, **fewer)
    with pytest.raises(BedstoneError, match="alternatives are of one part"):
        bedstone.pipeline("translation", small_model("bart"), return_alternatives=2)(LONG)


# Words that must and must not occur, and groups.


def test_words_by_their_text(translate):
    (found,) = texts(translate("412", force_words=["seven"]))
    assert "seven" in found.split()
    (found,) = texts(translate("412", bad_words=["twelve"]))
    assert "twelve" not in found.split()
    both = translate("412", glossary={"412": "dozen"}, force_words=["seven"], bad_words="four")
    assert {"dozen", "seven"} <= set(texts(both)[0].split())
    for setting in ({"force_words": "seven"}, {"num_beam_groups": 2}, {"diversity_penalty": 1.0}):
        for fewer in ({"num_beams": 1}, {"do_sample": True}):
            with pytest.raises(BedstoneError, match=next(iter(setting))):
                translate("412", **setting, **fewer)


def test_groups_are_kept_apart(translate):
    plain = texts(translate("412", num_return_sequences=4))
    apart = texts(
        translate("412", num_return_sequences=4, num_beam_groups=4, diversity_penalty=5.0)
    )
    assert apart[0] == plain[0]
    assert len({text.split()[0] for text in apart}) > len({text.split()[0] for text in plain})


# What was read.


def by_hand(model, text, ids):
    """The share of a source's tokens that got over a third of an even share of attention."""
    network, source = model.network, source_ids(model.tokenizer, text)
    writer = network.writer(network.memory(torch.tensor([source])))
    reads = [model.config.start_id, *ids[:-1]]
    shares = writer.attention(torch.tensor([reads]))[0]  # (T, S)
    assert torch.allclose(shares.sum(-1), torch.ones(len(reads)), atol=1e-5)
    first = common(source_ids(model.tokenizer, ""), source)
    read = (shares[:, first:-1] > 1 / (EVEN * len(source))).any(0)
    return float(read.float().mean())


@pytest.mark.parametrize("layout", ["marian", "bart", "t5"])
def test_coverage_is_of_the_ids_that_were_written(layout):
    model = small_model(layout)
    made = bedstone.pipeline("translation", model, return_coverage=True)
    ids = made(SENTENCES, return_tensors=True, num_return_sequences=2)
    for text, own in zip(SENTENCES, ids, strict=True):
        for one in own:
            expected = by_hand(model, text, one["translation_token_ids"])
            assert one["coverage"] == pytest.approx(expected, abs=1e-6)
    assert made("")[0]["coverage"] == 1.0
    (whole,) = made(LONG)
    assert whole["parts"] > 2 and 0 <= whole["coverage"] <= 1
    assert "coverage" not in made("a cat", return_coverage=False)[0]


def test_what_precedes_a_source_is_not_counted():
    made = bedstone.pipeline("translation", small_model("t5"), prefix="read: ")
    (part,) = made.prepare("a cat", made.options).parts
    known = made.tokenizer
    assert known.decode(part.ids[part.lead :]).strip() == "a cat"
    assert known.decode(part.ids[: part.lead]).strip() == "read:"


def test_a_model_that_reads_its_source_covers_it(translate, model):
    sources = [str(number) for number in HELD_OUT]
    found = translate(sources, return_coverage=True)
    read = sum(one["coverage"] for one in found) / len(found)
    assert read > 0.9
    for precision in ("bf16", "int8"):
        made = bedstone.pipeline("translation", model, precision=precision)
        assert made("412", return_coverage=True)[0]["coverage"] > 0.5


# Tokenizers of other models.


def test_a_tokenizer_of_another_model_is_refused(model):
    other = trained_model(1)
    other.tokenizer = small_model("bart").tokenizer
    with pytest.raises(BedstoneError, match=r"has 399 tokens of sources, and the network 300"):
        bedstone.pipeline("translation", other)
    object.__setattr__(model.config, "eos_id", 5)
    try:
        with pytest.raises(BedstoneError, match=r"its end token is \d+, and config.json says 5"):
            bedstone.pipeline("translation", model)
    finally:
        object.__setattr__(model.config, "eos_id", model.tokenizer.eos_id)
