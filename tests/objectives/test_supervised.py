"""Losses of labelled rows: equal to the published ones, whatever the packing, padding and split."""

import json
from types import SimpleNamespace

import pytest
import torch

from bedstone.data.dataset import Dataset
from bedstone.data.text.convert_tokenizer import train_wordpiece
from bedstone.data.text.examples import example_stream
from bedstone.data.text.supervised import make_examples
from bedstone.data.text.tokenizer import Tokenizer
from bedstone.data.text.train_tokenizer import train_bpe
from bedstone.models.bert.network import BertConfig
from bedstone.models.bert.network import build as build_bert
from bedstone.models.gpt.network import GPTConfig
from bedstone.models.gpt.network import build as build_gpt
from bedstone.models.heads import HeadConfig
from bedstone.models.published import layout, to_published
from bedstone.objectives.supervised import loss_of_scores, objective_of
from networks import randomise

WORDS = [
    "the",
    "red",
    "boat",
    "sails",
    "far",
    "over",
    "a",
    "small",
    "cold",
    "sea",
    "and",
    "no",
    "one",
    "sees",
    "it",
    "go",
]
TEXTS = [" ".join(WORDS[at : at + 2 + 3 * (at % 4)]) for at in range(12)]
SHAPE = {"width": 32, "layers": 2, "heads": 4, "context": 64}


def _rows(kind: str) -> list[dict]:
    if kind == "tokens":
        tags = [["B-X" if "a" in w else "O" for w in text.split()] for text in TEXTS]
        return [{"tokens": t.split(), "ner_tags": g} for t, g in zip(TEXTS, tags, strict=True)]
    if kind == "spans":
        return [
            {
                "question": "which ?",
                "context": text,
                "answers": {
                    "text": [text.split()[1]],
                    "answer_start": [text.index(text.split()[1])],
                },
            }
            for text in TEXTS
        ]
    if kind == "language":
        return [
            {"prompt": text, "completion": " and so on"[: 4 + n]} for n, text in enumerate(TEXTS)
        ]
    labels = {
        "single": ["x", "y", "z"] * 4,
        "multi": [["x"], ["y", "z"], []] * 4,
        "regression": [0.5, 2.5, -1.0] * 4,
    }
    column = "score" if kind == "regression" else "label"
    return [{"text": t, column: v} for t, v in zip(TEXTS, labels[kind], strict=True)]


TASK = {"tokens": "token-classification", "spans": "question-answering"}
TASK["language"] = "text-generation"


def example_batch(kind: str, tokenizer: Tokenizer, reads: str):
    task = TASK.get(kind, "text-classification")
    problem = kind if kind in ("single", "multi", "regression") else "auto"
    rows = Dataset(_rows(kind))
    return make_examples(task, rows, tokenizer, problem=problem, limit=64), reads


@pytest.fixture(scope="module")
def pieces() -> Tokenizer:
    return Tokenizer(*train_wordpiece([" ".join([*WORDS, "which ?"])] * 9, 110))


@pytest.fixture(scope="module")
def bytes_pairs() -> Tokenizer:
    return train_bpe([" ".join(WORDS)] * 9, 300)


def network_for(kind: str, examples, family: str, tokenizer: Tokenizer):
    head = HeadConfig(examples.kind, tuple(examples.labels), examples.problem)
    if family == "gpt":
        config = GPTConfig(layout="gpt2", vocab_size=tokenizer.vocab_size, head=head, **SHAPE)
        network = build_gpt(config)
    else:
        network = build_bert(BertConfig(vocab_size=tokenizer.vocab_size, head=head, **SHAPE))
    randomise(network)
    return network.eval()


CASES = [("bert", kind) for kind in ("single", "multi", "regression", "tokens", "spans")]
CASES += [("gpt", kind) for kind in ("single", "tokens", "language")]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def lesson(request, pieces, bytes_pairs):
    family, kind = request.param
    tokenizer = bytes_pairs if family == "gpt" else pieces
    reads = "last" if family == "gpt" and kind == "single" else "first"
    examples, reads = example_batch(kind, tokenizer, reads)
    return kind, examples, reads, network_for(kind, examples, family, tokenizer)


def whole(lesson) -> tuple[float, dict[str, torch.Tensor]]:
    """Mean loss and gradients of all rows in one batch."""
    return stepped(lesson, 12)


def stepped(lesson, size: int) -> tuple[float, dict[str, torch.Tensor]]:
    _, examples, reads, network = lesson
    network.zero_grad()
    objective = objective_of(network.config.head)
    batches = example_stream(examples, size, reads=reads, shuffle=False)
    micro = [next(batches) for _ in range(-(-12 // size))]
    count = sum(batch.target_count for batch in micro)
    total = 0.0
    for batch in micro:
        loss, _ = objective(network, batch)
        (loss / count).backward()
        total += loss.item()
    return total / count, {n: p.grad.clone() for n, p in network.named_parameters()}


@pytest.mark.parametrize("size", [1, 5, 7])
def test_any_split_into_steps_gives_one_gradient(lesson, size):
    loss, gradients = whole(lesson)
    again, others = stepped(lesson, size)
    assert again == pytest.approx(loss, rel=1e-5)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, others[name], atol=1e-5, rtol=1e-3), name


def published(network, tmp_path):
    import transformers

    check = layout(network.config.layout)
    (tmp_path / "config.json").write_text(json.dumps(check.write_config(network.config)))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    theirs = getattr(transformers, check.architecture(network.config))(config)
    theirs.load_state_dict(to_published(check, network), strict=False)
    return theirs.eval()


@pytest.mark.parametrize("side", ["right", "left"])
def test_loss_and_gradients_are_the_published_ones_on_padded_rows(lesson, side, tmp_path):
    """Theirs on a padded grid, ours packed; what is averaged is a target, on either side."""
    kind, examples, reads, network = lesson
    if side == "left" and network.config.layout == "bert":
        pytest.skip("bert's own padding stands on the right: its positions begin at the left")
    loss, gradients = whole(lesson)
    theirs = published(network, tmp_path)
    batch = examples.batch(torch.arange(12).numpy(), reads=reads)
    padded = Padded(batch, side)
    extra = {"attention_mask": padded.keep.long()}
    if network.config.layout == "bert":
        extra["token_type_ids"] = padded.grid(batch.rows.types[0], 0)
    else:
        extra["position_ids"] = padded.grid(batch.rows.positions[0], 0)
        theirs.config.pad_token_id = PAD
    expected = their_loss(kind, theirs, padded, batch, extra)
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    expected.backward()
    check = layout(network.config.layout)
    grads = dict(theirs.named_parameters())
    for name in check.names(network.config):
        if name.theirs not in grads or any(part not in gradients for part in name.ours):
            continue
        wanted = name.read(grads[name.theirs].grad)
        for part, value in wanted.items():
            assert torch.allclose(gradients[part], value, atol=2e-4, rtol=1e-2), part


PAD = 0


class Padded:
    """The rows of a batch as a grid, padded on one side."""

    def __init__(self, batch, side: str) -> None:
        lengths = batch.rows.lengths
        self.longest = max(lengths)
        self.keep = torch.zeros(len(lengths), self.longest, dtype=torch.bool)
        for row, length in enumerate(lengths):
            self.keep[row, slice(length) if side == "right" else slice(-length, None)] = True
        self.ids = self.grid(batch.rows.ids[0], PAD)

    def grid(self, flat: torch.Tensor, fill: int) -> torch.Tensor:
        out = torch.full(self.keep.shape, fill, dtype=flat.dtype)
        out[self.keep] = flat
        return out


def their_loss(kind, theirs, padded, batch, extra):
    if kind == "language":
        labels = torch.full((len(batch.rows.ids[0]),), -100)
        labels[batch.read + 1] = batch.targets
        return theirs(padded.ids, labels=padded.grid(labels, -100), **extra).loss
    if kind == "tokens":
        labels = torch.full((len(batch.rows.ids[0]),), -100)
        labels[batch.read] = batch.targets
        return theirs(padded.ids, labels=padded.grid(labels, -100), **extra).loss
    if kind == "spans":
        # their own mean over starts and ends; padding is no candidate in ours
        out = theirs(padded.ids, **extra)
        logits = torch.stack((out.start_logits, out.end_logits), -1)
        logits = logits.masked_fill(~padded.keep[..., None], float("-inf"))
        return torch.nn.functional.cross_entropy(logits, batch.targets)
    labels = batch.targets.squeeze(-1) if kind == "regression" else batch.targets
    ids = padded.ids.masked_fill(~padded.keep, PAD)
    return theirs(ids, labels=labels, **extra).loss


@pytest.mark.parametrize("kind", ["tokens", "regression"])
def test_a_target_counts_for_its_weight(kind):
    """In the sum and in the gradient; how many there are stays the number of targets."""
    torch.manual_seed(0)
    head = HeadConfig("tokens", ("a", "b", "c"))
    targets = torch.tensor([0, 2, 1, 1])
    if kind == "regression":
        head = HeadConfig("sequence", ("a", "b", "c"), problem="regression")
        targets = torch.randn(4, 3)
    logits = torch.randn(4, 3, requires_grad=True)
    weights = torch.tensor([1.0, 0.0, 2.5, 0.5])
    batch = SimpleNamespace(targets=targets, weights=weights, target_count=4.0)
    loss, count = loss_of_scores(head, logits, batch)
    each = torch.stack(
        [
            loss_of_scores(head, row, SimpleNamespace(targets=aim, weights=None, target_count=1))[0]
            for row, aim in zip(logits.split(1), targets.split(1), strict=True)
        ]
    )
    assert count == 4
    torch.testing.assert_close(loss, (each * weights).sum())
    assert loss != each.sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient[1] == 0).all() and (gradient[0] != 0).any()
