"""Models that augment text: every kind that writes, the same rows in every batch."""

import pytest

from bedstone.data.text.augment import MARK, AugmentConfig, augment
from bedstone.errors import BedstoneError
from bedstone.models.heads import HeadConfig
from bedstone.tasks.pipeline import pipeline
from bedstone.tasks.text.augment import augmenting_models, back_translator, paraphraser
from encoder_decoders import small_model
from small_models import SENTENCES, decoder, model

MODELS = {
    "gpt": lambda: decoder(HeadConfig("language"), "qwen2"),
    "bart": lambda: small_model("bart"),
    "t5": lambda: small_model("t5"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_paraphrase_is_the_same_whatever_stands_beside_it(kind, monkeypatch):
    monkeypatch.setattr("bedstone.tasks.text.augment.PARAPHRASE", "{text} so:")
    made = MODELS[kind]()
    write = paraphraser(made, seed=3)
    texts = SENTENCES[:3]
    whole = write(texts)
    assert len(whole) == 3 and any(whole)
    assert write(texts) == whole  # as a run that goes on makes its rows again
    assert write(texts[::-1]) == whole[::-1]
    assert paraphraser(made, seed=4)(texts) != whole


def test_texts_go_there_and_back():
    there, back = small_model("marian", seed=2), small_model("marian", seed=5)
    found = back_translator(there, back, seed=3)(SENTENCES[:3])
    how = {"do_sample": True, "num_beams": 1, "temperature": 0.8, "top_p": 0.95, "seed": 3}
    most = 2 * max(len(there.tokenizer.encode(text)) for text in SENTENCES[:3]) + 16
    abroad = pipeline("translation", there, **how)(
        SENTENCES[:3], max_new_tokens=min(most, there.config.context - 1)
    )
    texts = [each["translation_text"] for each in abroad]
    most = 2 * max(len(back.tokenizer.encode(text)) for text in texts) + 16
    home = pipeline("translation", back)(texts, max_new_tokens=min(most, back.config.context - 1))
    assert found == [each["translation_text"] for each in home] != SENTENCES[:3]


def test_a_recipe_names_the_models(tmp_path):
    names = [str(small_model("bart", seed=seed).save(tmp_path / str(seed))) for seed in (2, 5)]
    config = AugmentConfig(
        copies=2, deletion=0, swap=0, paraphrase=names[0], back_translate=(names[0], names[1])
    )
    rows = [{"text": text, "label": 1} for text in SENTENCES[:2]]
    new = list(augment(rows, config, **augmenting_models(config)))
    marks = {row[MARK] for row in new if MARK in row}
    assert marks <= {"paraphrase", "back_translate"} and marks
    assert new == list(augment(rows, config, **augmenting_models(config)))


def test_models_that_dont_write_are_named():
    reader = model(HeadConfig("language"))
    with pytest.raises(BedstoneError, match=r"augment\.paraphrase: .* doesn't write text"):
        paraphraser(reader)
    with pytest.raises(BedstoneError, match=r"augment\.back_translate: .* doesn't translate"):
        back_translator(small_model("bart"), reader)
