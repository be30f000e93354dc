"""The logit lens and activation patching, on small random networks."""

import json

import numpy as np
import pytest
import torch

import bedstone
from bedstone.cli import main
from bedstone.errors import BedstoneError
from bedstone.inspect.explain import TARGETS, open_task
from bedstone.inspect.lens import after_blocks, patch
from bedstone.models.heads import HeadConfig
from drawings import drawing
from image_models import pictures
from image_text_models import sighted_model, told_model
from small_models import NLI, SENTENCES, decoder, model

LANGUAGE = HeadConfig("language")
QUICK = {"shuffles": 0, "orders": 2, "methods": ["occlusion"]}


@pytest.mark.parametrize("layout", ["gpt2", "llama", "qwen3"])
def test_after_the_last_block_a_gpt_says_its_logits_bit_for_bit(layout):
    network = decoder(LANGUAGE, layout).network
    ids = torch.tensor([[4, 5, 6, 7, 8]])
    expected = network(ids)
    found = after_blocks(network.stack, lambda: network(ids))
    assert len(found) == 3
    assert torch.equal(found[-1], expected)
    # before all blocks: the embedding by the network's own norm and head
    x = network.embed(ids)
    if network.positions is not None:
        x = x + network.positions(torch.arange(5)[None])
    assert torch.equal(found[0], network.head(network.norm(x)))
    assert not torch.equal(found[1], expected)
    assert torch.equal(network(ids), expected)  # the blocks are as they were


def test_each_layer_is_that_of_a_network_that_ends_there():
    whole, short = (decoder(LANGUAGE, "llama").network for _ in range(2))
    del short.stack[1]
    ids = torch.tensor([[4, 5, 6, 7, 8]])
    assert torch.equal(after_blocks(whole.stack, lambda: whole(ids))[1], short(ids))


@pytest.mark.parametrize("head", ["language", "pretraining"])
def test_a_bert_says_its_logits_bit_for_bit(head):
    made = model(HeadConfig(head))
    found = bedstone.explain(
        made, "the [MASK] barked at a cat.", task="fill-mask", lens=True, **QUICK
    )
    ids = torch.tensor([made.tokenizer.encode("the", special=True)])
    network = made.network
    expected = network(ids)
    expected = expected[0] if head == "pretraining" else expected
    read = after_blocks(network.stack, lambda: network(ids))
    assert torch.equal(read[-1][0] if head == "pretraining" else read[-1], expected)
    assert found.lens.sure.shape == (3, len(found.lens.tokens))
    np.testing.assert_array_equal(found.lens.sure[-1], found.lens.chosen[-1])
    assert found.lens.said[-1][found.lens.tokens.index("[MASK]")] == found.views[0].target.predicted


@pytest.mark.parametrize("made", [told_model, sighted_model])
def test_a_caption_is_what_stands_after_the_last_block(made):
    own = made()
    found = bedstone.explain(own, pictures(1)[0], task="image-to-text", lens=True, **QUICK)
    assert found.lens.said[-1]
    assert found.lens.settled == [
        max(
            (depth + 1 for depth in range(2) if found.lens.said[depth][at] != last),
            default=0,
        )
        for at, last in enumerate(found.lens.said[-1])
    ]


def test_a_denoiser_predicts_its_signal_bit_for_bit():
    network = drawing("text").network
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([0.5])
    read = {"memory": torch.randn(1, 4, 16), "memory_keep": torch.ones(1, 4, dtype=torch.bool)}
    expected = network.denoiser(x, t, **read)
    found = after_blocks(network.denoiser.stack, lambda: network.denoiser(x, t, **read))
    assert torch.equal(found[-1], expected)
    assert not torch.equal(found[0], expected)
    shown = bedstone.explain(
        drawing("text"), "a red circle and a blue square", lens=True, **QUICK
    ).lens
    assert len(shown.pictures) == 3 and shown.errors[-1] == 0.0 < shown.errors[0]


def cases(made, task, one, other):
    whole, ready = open_task(made, task)
    both = [TARGETS[task](ready, text, None, "auto") for text in (one, other)]
    return whole, both[0].case(whole), both[1].case(whole), both[0].tokens


ONE, OTHER = "a film that is dull", "a film that is lovely"


def test_all_of_an_answer_comes_back_with_the_state_it_is_read_from():
    made = decoder(LANGUAGE, "qwen3")
    text = "the unfriendly dogs"
    ids = made.tokenizer.encode(text)
    other = made.tokenizer.decode([*ids[:-1], ids[0]])
    assert len(made.tokenizer.encode(other)) == len(ids)
    whole, clean, beside, tokens = cases(made, "text-generation", text, other)
    found = patch(whole, clean, beside, tokens)
    assert found.states.shape == (3, len(ids)) and found.heads.shape == (2, 4)
    assert found.states[-1, -1] == pytest.approx(1.0, abs=1e-4)
    np.testing.assert_allclose(found.states[-1, :-1], 0.0, atol=1e-4)  # nobody reads them then
    # the texts differ at the last token alone, so its embedding brings all back
    assert found.states[0, -1] == pytest.approx(1.0, abs=1e-4)


def test_of_heads_only_the_one_that_writes_matters():
    made = model(NLI)
    network = made.network
    with torch.no_grad():
        for number, block in enumerate(network.stack):
            out = block["attn"].sublayer.out.weight  # (D, H W)
            kept = out[:, 16:24].clone()
            out.zero_()
            if number == 1:
                out[:, 16:24] = kept * 20  # of head 3
    words = made.tokenizer
    one, other = "the red cat", "the small cat"
    if len(words.encode(one)) != len(words.encode(other)):
        other = "the cat cat"
    whole, clean, beside, tokens = cases(made, "text-classification", one, other)
    if clean.values.shape != beside.values.shape:
        pytest.skip("the words have other numbers of tokens")
    found = patch(whole, clean, beside, tokens)
    silent = np.delete(found.heads.ravel(), 4 + 2)
    np.testing.assert_allclose(silent, 0.0, atol=1e-4)
    assert abs(found.heads[1, 2]) > 1e-2
    assert found.states[-1, 0] == pytest.approx(1.0, abs=1e-3)  # the class is read at the first


def test_inputs_of_other_lengths_are_refused():
    whole, clean, beside, tokens = cases(model(NLI), "text-classification", ONE, SENTENCES[0])
    with pytest.raises(BedstoneError, match="expected as many"):
        patch(whole, clean, beside, tokens)
    with pytest.raises(BedstoneError, match="the same number"):
        patch(whole, clean, clean, tokens)
    assert whole.narrows


def test_who_says_no_words_has_no_lens():
    with pytest.raises(BedstoneError, match="--lens: needs a model that says words"):
        bedstone.explain(model(NLI), ONE, lens=True, **QUICK)


def test_the_command_shows_both(tmp_path, capsys):
    folder = decoder(LANGUAGE, "llama").save(tmp_path / "model")
    page = tmp_path / "why.html"
    words = ["explain", str(folder), "the unfriendly dogs", "--method", "occlusion"]
    words += ["--orders", "2", "--shuffles", "0", "--out", str(page), "--json"]
    main([*words, "--lens"])
    found = json.loads(capsys.readouterr().out)
    assert len(found["lens"]["said"]) == 3
    assert "Logit lens" in page.read_text(encoding="utf-8")
