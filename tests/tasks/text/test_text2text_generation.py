"""text2text-generation, translation and summarization: as version 4 has them, and long sources."""

import json
import logging

import pytest
import torch

import bedstone
from bedstone.cli import main
from bedstone.data.text.encode import source_ids, target_ids
from bedstone.errors import BedstoneError
from bedstone.models.memory import MemoryWriter
from bedstone.nn.fast import kernels
from bedstone.tasks.pipeline import natural_task
from bedstone.tasks.text.text2text_generation import batches, split
from encoder_decoders import HELD_OUT, small_model, trained_model
from small_models import SENTENCES

LONG = " ".join(SENTENCES[:4] * 3)
KEYS = {
    "text2text-generation": "generated_text",
    "translation": "translation_text",
    "summarization": "summary_text",
}


@pytest.fixture(scope="module")
def model():
    return small_model("bart")


@pytest.mark.parametrize(("task", "key"), KEYS.items())
def test_keys_and_shapes_are_those_of_version_4(task, key, model):
    made = bedstone.pipeline(task, model)
    one, several = made(SENTENCES[0]), made(SENTENCES[:3])
    assert [set(each) for each in one] == [{key}] and len(several) == 3
    assert several[0] == one[0]
    two = made(SENTENCES[:2], num_return_sequences=2)
    assert [len(own) for own in two] == [2, 2] and two[0][0] == one[0]
    ids = made(SENTENCES[0], return_tensors=True)[0][key.replace("_text", "_token_ids")]
    assert model.tokenizer.decode(ids).strip() == one[0][key]
    sampled = made(SENTENCES[0], do_sample=True, num_return_sequences=3, seed=1)
    assert sampled == made(SENTENCES[0], do_sample=True, num_return_sequences=3, seed=1)
    assert len({each[key] for each in sampled}) > 1


@pytest.mark.parametrize("layout", ["marian", "bart", "t5"])
def test_texts_are_those_of_transformers(layout, tmp_path):
    import transformers

    mine = small_model(layout)
    mine.generation |= {"num_beams": 3, "length_penalty": 0.6, "no_repeat_ngram_size": 2}
    mine.save(tmp_path)
    kind = getattr(transformers, mine.layout.architecture(mine.config))
    theirs = kind.from_pretrained(tmp_path).eval()
    words = transformers.AutoTokenizer.from_pretrained(tmp_path)
    rows = words(SENTENCES, padding=True, return_tensors="pt")
    expected = theirs.generate(rows["input_ids"], attention_mask=rows["attention_mask"])
    texts = [words.decode(row, skip_special_tokens=True).strip() for row in expected]
    found = bedstone.pipeline("translation", bedstone.load(tmp_path))(SENTENCES)
    assert [one["translation_text"] for one in found] == texts


def test_beams_are_four_unless_the_model_or_the_caller_says(model):
    made = bedstone.pipeline("summarization", model)
    assert made._way(made.options).beams == 4
    assert made._way(made.options).max_tokens == 8
    greedy = made._way(made.chosen(num_beams=1))
    assert type(greedy).__name__ == "Sampling" and greedy.temperature == 0
    model.generation["num_beams"] = 2
    try:
        assert made._way(made.options).beams == 2
    finally:
        del model.generation["num_beams"]
    assert made._way(made.chosen(max_length=5)).max_tokens == 4  # the start token counts
    least = made(SENTENCES[0], min_length=6, return_tensors=True)[0]["summary_token_ids"]
    assert len(least) >= 6 - 1


def test_a_blank_source_gives_an_empty_text_and_generates_nothing(model, monkeypatch):
    made = bedstone.pipeline("translation", model)
    monkeypatch.setattr(made, "encode", None)
    assert made("") == [{"translation_text": ""}]
    assert made(["", " \n"]) == [{"translation_text": ""}] * 2
    assert made("", num_return_sequences=2) == [{"translation_text": ""}] * 2
    monkeypatch.undo()
    found = made(["", SENTENCES[0], " "])
    assert [bool(one["translation_text"]) for one in found] == [False, True, False]


def test_a_long_source_is_split_at_sentences_and_said(model, caplog):
    made = bedstone.pipeline("translation", model)
    with caplog.at_level(logging.WARNING, logger="bedstone.tasks"):
        (found,) = made(LONG)
    assert "split at sentences" in caplog.text
    prepared = made.prepare(LONG, made.options)
    assert found["parts"] == len(prepared.parts) > 2
    parts = [part.ids for part in prepared.parts]
    assert all(len(part) <= 40 for part in parts)
    words = model.tokenizer
    read = " ".join(words.decode(part).strip() for part in parts)
    assert read.split() == LONG.split()  # nothing is lost, nothing comes twice
    alone = [made(words.decode(part).strip())[0]["translation_text"] for part in parts]
    assert found["translation_text"] == " ".join(alone)
    assert "parts" not in made(SENTENCES[0])[0]
    several = made([LONG, SENTENCES[0]], num_return_sequences=2)
    assert [each["parts"] for each in several[0]] == [found["parts"]] * 2


def test_truncation_cuts_and_says_so(model, caplog):
    made = bedstone.pipeline("translation", model, truncation=True)
    with caplog.at_level(logging.WARNING, logger="bedstone.tasks"):
        assert "parts" not in made(LONG)[0]
    assert "was cut after 40" in caplog.text
    (part,) = made.prepare(LONG, made.options).parts
    assert len(part.ids) == 40 and part.ids[-1] == model.tokenizer.eos_id


@pytest.mark.parametrize("limit", [4, 6, 12, 30])
def test_parts_fit_and_lose_nothing(limit):
    def ids(part: str) -> list[int]:
        return list(range(len(part.split()) + max(map(len, part.split()), default=0) // 9 + 1))

    text = f"{LONG} {'x' * 50} end. And  more."
    parts = list(split(text, ids, limit))
    assert all(len(ids(part)) <= limit for part in parts)
    assert "".join("".join(parts).split()) == "".join(text.split())
    with pytest.raises(BedstoneError, match="reads 1 tokens at most"):
        list(split("a b", lambda part: [0, 1, 2], 1))


def test_batches_hold_sources_of_similar_length():
    lengths = [3, 90, 5, 4, 80, 3]
    assert list(batches(lengths, 2)) == [[1, 4], [2, 3], [0, 5]]
    parts = list(batches([1000] * 9 + [5] * 70, 32))
    assert [len(part) for part in parts] == [4, 4, 4, 32, 32, 3]
    assert sorted(n for part in parts for n in part) == list(range(79))


def test_long_texts_are_generated_for_few_sources_at_a_time(model, monkeypatch):
    made = bedstone.pipeline("translation", model)
    sizes: list[int] = []
    real = made.encode
    monkeypatch.setattr(made, "encode", lambda rows: sizes.append(len(rows)) or real(rows))
    monkeypatch.setattr("bedstone.tasks.text.text2text_generation.SLOTS", 4 * 8 * 3)
    short = made(SENTENCES[:4] * 2)
    assert sizes == [3, 3, 2]
    sizes.clear()
    assert made(SENTENCES[:4] * 2, batch_size=8) == short and sizes == [8]


@pytest.mark.parametrize("beams", [1, 4])
def test_settings_that_compare_with_the_source_read_it(beams):
    model = small_model("bart")
    model.generation["encoder_no_repeat_ngram_size"] = 1
    made = bedstone.pipeline("translation", model, num_beams=beams, return_tensors=True)
    for text, found in zip(SENTENCES, made(SENTENCES), strict=True):
        read = set(source_ids(model.tokenizer, text)) - {model.config.eos_id}
        assert not read & set(found["translation_token_ids"])


@pytest.mark.slow
@pytest.mark.skipif(kernels.library() is None, reason=f"no engine here: {kernels.why_not()}")
def test_greedy_ids_over_the_engine_are_those_of_torch(monkeypatch):
    made = bedstone.pipeline("translation", trained_model(), num_beams=1, return_tensors=True)
    sources, used, over = [str(number) for number in HELD_OUT], [], MemoryWriter.over_engine
    monkeypatch.setattr(MemoryWriter, "over_engine", lambda one: used.append(over(one)) or used[-1])
    found = made(sources)
    assert used and all(each is not None for each in used)
    monkeypatch.setattr(MemoryWriter, "over_engine", lambda one: None)
    assert made(sources) == found


def test_packed_sources_become_rows(model):
    made = bedstone.pipeline("translation", model)
    rows = [[5, 6, 7], [8], [9, 10]]
    memory, keep = made.encode(rows)
    assert keep.tolist() == [[True] * 3, [True, False, False], [True, True, False]]
    for number, row in enumerate(rows):
        alone = model.network.memory(torch.tensor([row]))[0]
        assert (memory[number, : len(row)] - alone).abs().max() < 1e-4
    assert made.encode([[5, 6], [7, 8]])[1] is None


def test_prefixes_of_tasks():
    prefixes = {
        "summarization": "sum: ",
        "translation_en_to_de": "de: ",
        "translation_en_to_fr": "f: ",
    }
    made = small_model("t5", prefixes=prefixes)
    read = {
        task: bedstone.pipeline(task, made) for task in (*KEYS, "translation_en_to_de")
    }  # fmt: skip
    assert read["summarization"].lead("a", read["summarization"].options) == ("sum: ", "a")
    assert read["text2text-generation"].lead("a", read["text2text-generation"].options)[0] == ""
    assert read["translation"].lead("a", read["translation"].options)[0] == ""
    named = read["translation_en_to_de"]
    assert named.name == "translation" and named.lead("a", named.options)[0] == "de: "
    plain = read["translation"]
    assert plain("a cat", src_lang="en", tgt_lang="de") == named("a cat") == plain("de: a cat")
    assert plain("a cat", prefix="f: ") == plain("a cat", src_lang="en", tgt_lang="fr")
    with pytest.raises(BedstoneError, match=r"translation_en_to_dx.*'translation_en_to_de'"):
        plain("a cat", src_lang="en", tgt_lang="dx")
    with pytest.raises(BedstoneError, match="no prefix for translation_fr_to_de"):
        bedstone.pipeline("translation_fr_to_de", made)


def test_languages_of_a_model_of_one_pair(model):
    model.tokenizer.settings |= {"source_lang": "en", "target_lang": "de"}
    try:
        made = bedstone.pipeline("translation_en_to_de", model)
        assert made("a cat") == made("a cat", tgt_lang="de")
        with pytest.raises(BedstoneError, match=r"tgt_lang: 'fr' was given; .* 'de'"):
            made("a cat", tgt_lang="fr")
    finally:
        del model.tokenizer.settings["source_lang"], model.tokenizer.settings["target_lang"]
    with pytest.raises(BedstoneError, match="src_lang: 3"):
        made("a cat", src_lang=3)


def test_languages_of_a_model_with_codes(model, caplog, monkeypatch):
    made = bedstone.pipeline("translation", model)
    monkeypatch.setattr(model.tokenizer, "languages", ["de", "fr"])
    assert made.lead("a cat", made.chosen(tgt_lang="fr")) == (">>fr<< ", "a cat")
    assert made.lead(">>de<< a cat", made.options) == (">>de<< ", "a cat")
    with pytest.raises(BedstoneError, match=r"tgt_lang: 'dee'.*'de'"):
        made("a cat", tgt_lang="dee")
    with caplog.at_level(logging.WARNING, logger="bedstone.tasks"):
        made(["a cat", "a dog"])
    assert caplog.text.count("a matter of chance") == 1
    monkeypatch.setattr(model.tokenizer, "languages", ["de"])  # the only one needs no name
    assert made.lead("a cat", made.options) == (">>de<< ", "a cat")
    monkeypatch.setitem(model.tokenizer.settings, "source_lang", "en")
    assert made.lead("a cat", made.chosen(src_lang="en")) == (">>de<< ", "a cat")
    with pytest.raises(BedstoneError, match=r"src_lang: 'es' was given; .* 'en'"):
        made("a cat", src_lang="es")


def test_a_start_token_that_is_said_nowhere_is_refused(model):
    start = model.generation.pop("decoder_start_token_id")
    config = model.network.config
    object.__setattr__(config, "start_id", None)
    try:
        with pytest.raises(BedstoneError, match=r"decoder_start_token_id stands neither .* Add it"):
            bedstone.pipeline("translation", model)
        model.generation["decoder_start_token_id"] = 10**6
        with pytest.raises(BedstoneError, match="decoder_start_token_id = 1000000"):
            bedstone.pipeline("translation", model)
    finally:
        object.__setattr__(config, "start_id", start)
        model.generation["decoder_start_token_id"] = start


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stop": "x"}, "stop: 'x'"),
        ({"prediction": "x"}, "prediction"),
        ({"prefix": 3}, "prefix: 3"),
        ({"num_beams": 2, "do_sample": True}, "num_beams: 2"),
        ({"min_length": -1}, "min_length"),
        ({"num_return_sequences": 9}, "num_return_sequences: 9"),
        ({"tgt_lang": "de"}, "option 'tgt_lang' is unknown"),
    ],
)
def test_options_that_do_not_fit(options, words, model):
    with pytest.raises(BedstoneError, match=words):
        bedstone.pipeline("summarization", model, **options)


@pytest.mark.parametrize(
    ("asks", "words"),
    [
        ({"constraints": [1]}, "constraints = .* is not supported"),
        ({"penalty_alpha": 0.6}, "penalty_alpha = 0.6 is not supported"),
        ({"bad_words_ids": [[10**6]]}, "bad_words_ids"),
    ],
)
def test_settings_of_the_folder_that_are_not_built_are_named(asks, words, model):
    kept = dict(model.generation)
    model.generation |= asks
    try:
        with pytest.raises(BedstoneError, match=words):
            bedstone.pipeline("translation", model)("a cat")
    finally:
        model.generation.clear()
        model.generation |= kept


def test_sources_and_targets_end_with_the_end_token(model):
    known = model.tokenizer
    assert source_ids(known, "a cat")[-1] == target_ids(known, "a cat")[-1] == known.eos_id
    from bedstone.data.text.train_tokenizer import train_bpe

    plain = train_bpe(SENTENCES, 300)  # adds no end on its own
    assert source_ids(plain, "a cat") == [*plain.encode("a cat"), plain.eos_id]
    plain.settings.pop("eos_token")
    with pytest.raises(BedstoneError, match="has no end token"):
        source_ids(plain, "a cat")


def test_from_the_command_line(model, tmp_path, capsys):
    folder, plain = str(model.save(tmp_path / "m")), ("--precision", "fp32")
    assert natural_task(model) == "text2text-generation"
    assert (
        main(["run", "translation_en_to_de", folder, SENTENCES[0], SENTENCES[1], "--json", *plain])
        == 0
    )
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = bedstone.pipeline("translation", model)(SENTENCES[:2])
    assert [line["result"] for line in lines] == [[one] for one in expected]
    assert main(["run", "summarization", folder, SENTENCES[0], "--option", "num_beams=2"]) == 0
    assert "summary_text" not in capsys.readouterr().out  # the text alone
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"text": text}) for text in SENTENCES[:2]))
    out = tmp_path / "out.jsonl"
    assert main(["predict", folder, str(rows), "--out", str(out), "--task", "translation"]) == 0
    predicted = [json.loads(line)["prediction"] for line in out.read_text().splitlines()]
    assert all(isinstance(text, str) and "translation_text" not in text for text in predicted)
    capsys.readouterr()
    assert main(["info", folder]) == 0
    assert "seq2seq" in capsys.readouterr().out
    assert main(["generate", folder, "a cat"]) == 2
    said = capsys.readouterr().err
    assert "translation" in said and "text-generation: needs a decoder" in said
    assert main(["run", "fill-mask", folder, "a cat"]) == 2
    assert "seq2seq" in capsys.readouterr().err


def test_what_a_gpt_cannot_do(tmp_path):
    from bedstone.models.heads import HeadConfig
    from small_models import decoder

    gpt = decoder(HeadConfig("language"), "gpt2")
    with pytest.raises(BedstoneError, match="text2text-generation: needs an encoder-decoder"):
        bedstone.pipeline("text2text-generation", gpt)
    with pytest.raises(BedstoneError, match="src_lang: none was given"):  # by its prompt
        bedstone.pipeline("translation", gpt)("a cat")
