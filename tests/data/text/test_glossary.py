"""Glossaries: files of several forms, terms found in sources, terms counted in outputs."""

import pytest

from bedstone.data.text.glossary import Glossary, Term, glossary_of, read_glossary, words_of_text
from bedstone.errors import BedstoneError

PAIRS = [
    ("dog", "Hund"),
    ("guide dog", "Blindenhund"),
    ("dog house", "Hundehütte"),
    ("U.S.", "USA"),
]


def written(tmp_path, text, name="terms.csv"):
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("terms.csv", "dog,Hund\nthe sea,das Meer\n"),
        ("terms.csv", "\ufeffSource,Target\r\ndog,Hund\r\n\r\nthe sea,das Meer\r\n"),
        ("terms.csv", "target,note,source\nHund,,dog\ndas Meer,big,the sea"),
        ("terms.tsv", "dog\tHund\nthe sea\tdas Meer\n"),
        ("terms.csv", "source;target\ndog;Hund\nthe sea;das Meer\n"),
        ("terms.txt", 'source term,target term\n" dog ",Hund\n"the sea","das Meer"\n'),
    ],
)
def test_files_of_several_forms(tmp_path, name, text):
    found = read_glossary(written(tmp_path, text, name))
    assert found.terms == [Term("dog", ("Hund",)), Term("the sea", ("das Meer",))]
    assert len(found) == 2


def test_several_targets_are_alternatives(tmp_path):
    text = "dog,Hund\nDog,Hündin | Hund\nsource,Quelle\ntarget,Ziel\n"
    found = read_glossary(written(tmp_path, text))
    assert found.terms[0] == Term("dog", ("Hund", "Hündin"))
    assert found.terms[1:] == [Term("source", ("Quelle",)), Term("target", ("Ziel",))]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no terms"),
        ("source,target\n", "has no terms"),
        ("dog\n", r"line 1 has 1 cells; expected 2"),
        ("dog,Hund,x\n", r"line 1 has 3 cells; expected 2"),
        ("dog,Hund\na, b,c\n", r"line 2 has 3 cells"),
        ("source,target\ndog\n", r"line 2 has 1 cells"),
        ("source,note,other\ndog,x,y\n", r"its header, .* has 1 columns of source .* 0 of target"),
        ("source,target,target\na,b,c\n", "2 of target"),
        ("dog,Hund\ncat,\n", r"line 2: the target term is ''"),
        ("dog,Hund\n ,Katze\n", r"line 2: the source term is ''"),
        ("dog,Hund|\n", r"line 1: the target term is 'Hund\|'"),
        ('dog,"Hund\n', r"line 1 is not valid CSV"),
        (b"dog,H\xfcnd\n", "is not UTF-8"),
    ],
)
def test_refuses_files_by_their_lines(tmp_path, text, words):
    with pytest.raises(BedstoneError, match=r"terms.csv: .*" + words):
        read_glossary(written(tmp_path, text))


def test_a_file_that_isnt_there(tmp_path):
    with pytest.raises(BedstoneError, match=r"none.csv"):
        read_glossary(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("source", "terms"),
    [
        ("A DOG runs.", ["dog"]),
        ("dogs, hotdog, dog-house", ["dog"]),  # a mark parts words
        ("the guide\n dog house", ["guide dog"]),  # as long as the other, and first
        ("a guide dog and a dog", ["guide dog", "dog"]),
        ("dog house dog", ["dog house", "dog"]),
        ("in the U.S. and USA", ["U.S."]),
        ("nothing here", []),
        ("", []),
    ],
)
def test_terms_are_whole_words_and_the_longest(source, terms):
    assert [term.source for term in Glossary(PAIRS).find(source)] == terms


def test_scripts_without_spaces_and_other_forms_of_letters():
    known = Glossary([("東京", "Tokyo"), ("東京都", "Tokyo Metropolis"), ("Café", "Kaffeehaus")])
    assert [term.source for term in known.find("私は東京都と東京に住む")] == ["東京都", "東京"]
    assert [term.source for term in known.find("the cafe\u0301 there")] == ["Café"]
    assert words_of_text("Straße, 3x") == ("strasse", ",", "3x")


def test_terms_that_outputs_honour_are_counted():
    known = Glossary([*PAIRS, ("sea", "Meer|See")])
    sources = ["A dog at the sea.", "The guide dog.", "Nothing.", "Dog, dog, dog"]
    outputs = ["Ein HUND an der See.", "Der Hund.", "Nichts.", "Hunde"]
    found = known.honoured(sources, outputs)
    assert (found.terms, found.found) == (4, 2)
    assert [(number, term.source) for number, term in found.missing] == [
        (1, "guide dog"),
        (3, "dog"),
    ]
    assert found.share == 0.5
    assert known.honoured(["none"], ["keine"]).share is None


def test_a_glossary_of_a_file_or_a_mapping(tmp_path):
    file = tmp_path / "terms.csv"
    file.write_text("sea,Meer|See\n")
    made = glossary_of({"sea": ["Meer", "See"]})
    assert made.terms == glossary_of(str(file)).terms == glossary_of({"sea": "Meer|See"}).terms
    assert glossary_of(made) is made and repr(made) == "<1 terms>"
    for wrong in (None, "", {}, [("sea", "Meer")], {"sea": 3}, {"sea": "|"}, {"!": None}):
        with pytest.raises(BedstoneError, match=r"glossary: .* expected"):
            glossary_of(wrong)
