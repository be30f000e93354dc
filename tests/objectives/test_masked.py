"""The loss of hidden words and pairs, against padded full logits and the published network."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bedstone.data.text.masked_lm import (
    Chosen,
    Corruption,
    MaskedBatches,
    MaskingConfig,
    RowMaker,
    row_keys,
)
from bedstone.data.text.sentences import ALONE, Documents
from bedstone.data.text.token_cache import TokenSplit
from bedstone.models.bert.network import BertConfig, build
from bedstone.models.heads import HeadConfig
from bedstone.models.published import layout, to_published
from bedstone.objectives.masked import MaskedLoss, masked_scores
from bedstone.runtime import Precision
from networks import randomise

VOCABULARY, CONTEXT = 90, 24  # small enough for logits at every token


def rows() -> RowMaker:
    draw = np.random.default_rng(0)
    lengths = [70, 3, 40, 1, 90]
    split = TokenSplit.from_documents([draw.integers(5, VOCABULARY, n) for n in lengths])
    pieces = np.unique(np.concatenate((split.starts, np.arange(0, sum(lengths), 6))))
    split = TokenSplit("train", split.tokens, split.starts, 0, None, pieces)
    hides = np.arange(VOCABULARY) >= 5
    corruption = Corruption(4, np.flatnonzero(hides), hides, MaskingConfig().share)
    return RowMaker(Documents(split), corruption, 2, 3, CONTEXT, pairs=True, short=0.3)


def batches(sizes: list[int]):
    """The same rows in batches of these sizes."""
    made = rows()
    segments = made.segments(np.arange(5), (3,))
    keys, at = row_keys((1,), np.arange(len(segments))), 0
    for number, size in enumerate(sizes):
        chosen = np.arange(at, at + size)
        yield made.batch([Chosen(segments, chosen, keys[chosen])], number)
        at += size


def network(kind: str = "pretraining"):
    shape = {"width": 32, "layers": 2, "heads": 4, "hidden": 48, "dropout": 0.0}
    config = BertConfig(
        vocab_size=VOCABULARY,
        context=CONTEXT,
        attention_dropout=0.0,
        head=HeadConfig(kind),
        **shape,
    )
    made = build(config)
    randomise(made)
    return made


def gradients(made, loss) -> dict[str, torch.Tensor]:
    made.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in made.named_parameters()}


def padded(batch):
    """ids, which are real, types, labels (-100 where nothing is hidden): (n, T)."""
    spans = batch.rows.spans
    longest = max(batch.rows.lengths)
    ids = torch.zeros(len(spans), longest, dtype=torch.long)
    types, keep = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    labels = torch.full_like(ids, -100)
    flat = torch.full((batch.ids.shape[1],), -100)
    flat[batch.read] = batch.targets
    for row, (start, end) in enumerate(spans):
        size = end - start
        ids[row, :size], types[row, :size] = batch.ids[0, start:end], batch.rows.types[0, start:end]
        keep[row, :size], labels[row, :size] = True, flat[start:end]
    return ids, keep, types, labels


def close(ours, theirs):
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-5)


def test_packed_rows_learn_as_padded_full_logits():
    made, (batch,) = network(), batches([12])
    assert set(batch.pairs.tolist()) == {0, 1, ALONE}
    loss, count = MaskedLoss(2.5)(made, batch)
    ids, keep, types, labels = padded(batch)
    words, pairs = made(ids, keep, types=types)
    plain = F.cross_entropy(words.flatten(0, 1), labels.flatten(), reduction="sum")
    plain = plain + 2.5 * F.cross_entropy(pairs, batch.pairs, reduction="sum")
    assert count == int((labels != -100).sum()) == batch.target_count
    torch.testing.assert_close(loss, plain)
    close(gradients(made, loss), gradients(made, plain))


def test_the_published_network_has_the_same_loss(tmp_path):
    import transformers

    made, (batch,) = network(), batches([12])
    (tmp_path / "config.json").write_text(json.dumps(layout("bert").write_config(made.config)))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    theirs = transformers.BertForPreTraining(config).eval()
    theirs.load_state_dict(to_published(layout("bert"), made), strict=False)
    ids, keep, types, labels = padded(batch)
    out = theirs(
        ids,
        attention_mask=keep.long(),
        token_type_ids=types,
        labels=labels,
        next_sentence_label=batch.pairs,
    )
    # Theirs is the sum of two means: a pair weighs words / pairs.
    pairs = int((batch.pairs != ALONE).sum())
    loss, count = MaskedLoss(batch.target_count / pairs)(made, batch)
    torch.testing.assert_close(loss / count, out.loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [[4, 4, 4], [1, 11], [2, 3, 7], [1] * 12])
def test_any_split_of_a_step_learns_the_same(sizes):
    made, objective = network(), MaskedLoss(3.0)
    (whole,) = batches([12])
    loss, count = objective(made, whole)
    want = gradients(made, loss / count)
    made.zero_grad()
    total, counts = 0.0, 0
    for batch in batches(sizes):
        part, targets = objective(made, batch)
        (part / count).backward()
        total, counts = total + part.item(), counts + targets
    assert counts == count
    assert total == pytest.approx(loss.item(), rel=1e-5)
    close({name: weight.grad for name, weight in made.named_parameters()}, want)


def test_scores_are_those_of_the_plain_form():
    made = network().eval()
    parts = list(batches([5, 7]))
    scores = masked_scores(made, parts, Precision(torch.device("cpu"), torch.float32))
    right = pairs_right = 0
    word_loss = pair_loss = 0.0
    for batch in parts:
        ids, keep, types, labels = padded(batch)
        with torch.no_grad():
            words, pairs = made(ids, keep, types=types)
        word_loss += F.cross_entropy(words.flatten(0, 1), labels.flatten(), reduction="sum").item()
        pair_loss += F.cross_entropy(pairs, batch.pairs, reduction="sum").item()
        right += int((words.argmax(-1) == labels).sum())
        pairs_right += int((pairs.argmax(-1) == batch.pairs).sum())
    assert scores.word_loss == pytest.approx(word_loss, rel=1e-5)
    assert scores.pair_loss == pytest.approx(pair_loss, rel=1e-5)
    assert (scores.words_right, scores.pairs_right) == (right, pairs_right)
    assert scores.words == sum(batch.target_count for batch in parts)


def test_a_head_of_words_alone_learns_from_rows_of_pairs():
    made = network("language")
    batch = next(MaskedBatches(rows(), 100))
    assert batch.pairs is not None
    loss, count = MaskedLoss(5.0)(made, batch)
    ids, keep, types, labels = padded(batch)
    plain = F.cross_entropy(
        made(ids, keep, types=types).flatten(0, 1), labels.flatten(), reduction="sum"
    )
    assert count == int((labels != -100).sum()) > 3 and loss > count
    torch.testing.assert_close(loss, plain)
    close(gradients(made, loss), gradients(made, plain))
    with pytest.raises(TypeError, match="restores no words"):
        MaskedLoss()(network("states"), batch)
