"""Text in, text out: stop texts wherever they are cut, and whole characters alone."""

import pytest
import tokenizers
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.train_tokenizer import train_bpe
from bedstone.generation.beam import beam_search
from bedstone.generation.sampling import Sampling
from bedstone.generation.settings import BeamSearch
from bedstone.generation.text import StopText, encode_prompt, stream_text, write, write_beams
from bedstone.models.gpt.network import GPTConfig, build
from networks import randomise

TEXT = "The cat sat on the mat. Über den Wölken 漢字 🙂🙃 and so on, and so on.\n" * 3


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe([TEXT], 300)


class Script:
    """A network that says the ids of a script, whatever it reads; one script a row."""

    class Memory:
        """Stands for the key/value cache: how far each row is."""

        device = torch.device("cpu")

        def __init__(self, rows: int) -> None:
            self.rows, self.at = list(range(rows)), [0] * rows

        def set_lengths(self, lengths) -> None:
            pass

        def keep(self, places) -> None:
            self.rows = [self.rows[place] for place in places.tolist()]
            self.at = [self.at[place] for place in places.tolist()]

    def __init__(self, vocabulary: int, scripts: list[list[int]]) -> None:
        self.config = GPTConfig(vocab_size=vocabulary, context=512)
        self.scripts = scripts

    def new_cache(self, batch: int, capacity: int):
        return Script.Memory(batch)

    def states(self, ids, *, cache):
        logits = torch.zeros(len(ids), ids.shape[1], self.config.vocab_size)
        for place, row in enumerate(cache.rows):
            logits[place, :, self.scripts[row][cache.at[place]]] = 9.0
            cache.at[place] += 1
        return logits

    def head(self, states):
        return states


def script(tokenizer, *texts: str) -> Script:
    ids = [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]
    return Script(tokenizer.vocab_size, ids)


def cut(text: str, stops: list[str]) -> str:
    """What `StopText` should pass on: text before the stop text that is complete first."""
    for end in range(len(text) + 1):
        places = [text[:end].find(stop) for stop in stops if stop in text[:end]]
        if places:
            return text[: min(places)]
    return text


@settings(max_examples=200, deadline=None)
@given(
    pieces=st.lists(st.text("ab\n", max_size=4), max_size=8),
    stops=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
)
@example(pieces=["aa", "b"], stops=["aab"])
@example(pieces=["a", "a", "ab"], stops=["aab"])
def test_stop_text_cuts_wherever_pieces_are_cut(pieces, stops):
    stop = StopText(stops)
    letters = [letter for piece in pieces for letter in piece]
    whole = "".join(pieces)
    passed = ""
    for letter in letters:
        passed += stop.push(letter)
        assert not any(text in passed for text in stops)
    passed += stop.flush() if stop.found is None else ""
    assert passed == cut(whole, stops)
    again = StopText(stops)
    out = "".join(again.push(piece) for piece in pieces)
    out += again.flush() if again.found is None else ""
    assert (stop.found is None) == (again.found is None)
    if again.found is None:
        assert out == whole
    else:
        assert whole.startswith(out)
        assert whole[len(out) :].startswith(again.found)


def test_nothing_is_held_back_without_need():
    stop = StopText(["END"])
    assert stop.push("abc E") == "abc "
    assert stop.push("x") == "Ex"


def test_text_is_what_was_said(tokenizer):
    said = "Wölken 漢字 🙂 on"
    result = write(script(tokenizer, said), tokenizer, ["The cat"])[0]
    assert (result.text, result.finish, result.stop) == (said, "stop", None)
    assert result.ids[-1] == tokenizer.eos_id


def test_stop_text_across_tokens(tokenizer):
    said = "The cat sat on the mat."
    for start in range(1, len(said) - 3):
        stop = said[start : start + 4]
        network = script(tokenizer, said)
        result = write(network, tokenizer, ["x"], Sampling(stop=(stop,)))[0]
        assert result.text == said[: said.index(stop)]
        assert (result.finish, result.stop) == ("stop", stop)
        assert stop in tokenizer.decode(result.ids)  # ids are whole


def test_a_stop_text_that_stays_unfinished_is_given_out_at_the_end(tokenizer):
    result = write(script(tokenizer, "and so"), tokenizer, ["x"], Sampling(stop=("so on",)))[0]
    assert result.text == "and so"


def test_pieces_are_whole_characters_and_join_to_the_text(tokenizer):
    said = ["🙂🙃漢字", "Über den mat 漢", "cat"]
    pieces = list(stream_text(script(tokenizer, *said), tokenizer, ["a", "bb", "c"]))
    for row, text in enumerate(said):
        assert "".join(piece.text for piece in pieces if piece.row == row) == text
    assert not any("�" in piece.text for piece in pieces)
    assert [piece.finish for piece in pieces if piece.row == 2][-1] == "stop"


def test_an_unfinished_character_shows_only_at_the_end(tokenizer):
    network = script(tokenizer, "ab🙂")
    ids = network.scripts[0]
    half = Sampling(max_tokens=len(ids) - 2)  # without the end token and the last byte
    pieces = [piece.text for piece in stream_text(network, tokenizer, ["x"], half)]
    whole = tokenizer.decode(ids[: len(ids) - 2])
    assert "".join(pieces) == whole
    assert "�" not in "".join(pieces[:-1])


def test_rows_stop_by_their_own_text(tokenizer):
    network = script(tokenizer, "The cat sat", "and so on", "on the mat")
    results = write(network, tokenizer, ["a", "b", "c"], Sampling(stop=("so", "the")))
    assert [result.text for result in results] == ["The cat sat", "and ", "on "]
    assert [result.stop for result in results] == [None, "so", "the"]


def test_prompts_take_what_stands_before_a_text_alone():
    from tokenizers.processors import TemplateProcessing

    tokenizer = train_bpe([TEXT], 300, special_tokens=("<s>", "</s>"))
    first, last = tokenizer.id_of("<s>"), tokenizer.id_of("</s>")
    tokenizer.backend.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", first), ("</s>", last)]
    )
    assert encode_prompt(tokenizer, "The cat") == [first, *tokenizer.encode("The cat")]
    assert encode_prompt(tokenizer, "") == [first]


def test_beams_give_text_best_first(tokenizer):
    config = GPTConfig(vocab_size=tokenizer.vocab_size, width=32, layers=1, heads=2, context=64)
    network = build(config).eval()
    randomise(network)
    search = BeamSearch(beams=4, returned=3, max_tokens=9)
    prompts = ["The cat", "Über den"]
    found = write_beams(network, tokenizer, prompts, search)
    ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    plain = beam_search(network, ids, search, eos=[tokenizer.eos_id])
    for own, want in zip(found, plain, strict=True):
        assert [(one.ids, one.score) for one in own] == [(one.ids, one.score) for one in want]
        assert [one.text for one in own] == [tokenizer.decode(list(one.ids)) for one in want]
        assert own[0].score >= own[1].score >= own[2].score


def metaspace(unknown: str = "<unk>") -> Tokenizer:
    """A tokenizer of letters that writes spaces and starts as SentencePiece does (Llama 2)."""
    letters = ["▁", *"abLily.Tsotnhec"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names += dict.fromkeys([*letters, *(f"▁{letter}" for letter in letters[1:])])
    vocabulary = {name: number for number, name in enumerate(names)}
    merges = [("▁", letter) for letter in dict.fromkeys(letters[1:])]
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocabulary, merges, unk_token=unknown, byte_fallback=True)
    )
    backend.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    backend.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return Tokenizer(backend, {"bos_token": "<s>", "eos_token": "</s>"})


@settings(deadline=None, max_examples=60)
@given(
    text=st.text("ab. 漢🙂", min_size=2, max_size=30),
    cut=st.integers(1, 29),
    kind=st.sampled_from(["metaspace", "bytes"]),
)
@example("Lily. She", 5, "metaspace")
def test_a_continuation_is_what_is_added_to_the_prompt(text, cut, kind):
    """Whatever the tokenizer writes at the start of a word: the space after the prompt stays."""
    known = metaspace() if kind == "metaspace" else train_bpe([TEXT], 300)
    ids = known.encode(text)
    cut = min(cut, len(ids) - 1)
    before, after = ids[:cut], ids[cut:]
    start = known.decode(before)
    assume("\ufffd" not in start)  # a prompt is whole
    assert start + known.continuation(before, after) == known.decode(ids)
    parts = known.parts(before, after)
    assert len(parts) == len(after)
    assert "".join(parts) == known.continuation(before, after)


def test_streams_beams_and_rows_keep_the_space_after_the_prompt():
    known = metaspace()
    prompt = "the cat"
    said = [*known.encode("sat"), known.eos_id]
    assert known.decode(said) == "sat"
    rows = write(Script(known.vocab_size, [said]), known, [prompt])
    assert rows[0].text == " sat"
    pieces = stream_text(Script(known.vocab_size, [said]), known, [prompt])
    assert "".join(piece.text for piece in pieces) == " sat"
    config = GPTConfig(vocab_size=known.vocab_size, width=32, layers=1, heads=2, context=64)
    network = build(config).eval()
    randomise(network)
    found = write_beams(network, known, [prompt], BeamSearch(beams=3, returned=3, max_tokens=6))[0]
    before = encode_prompt(known, prompt)
    for one in found:
        assert prompt + one.text == known.decode([*before, *one.ids])
