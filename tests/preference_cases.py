"""A small policy, its reference and answers to prompts, the same for us and for TRL."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from bedstone.data.text.packing import lay
from bedstone.data.text.preference_examples import PreferenceBatch
from bedstone.models.gpt.network import GPTConfig, build
from bedstone.models.heads import HeadConfig
from bedstone.objectives.preferences import answer_log_probs
from networks import randomise

VOCABULARY, PAIRS = 61, 5
MARGINS = (0.5, 0.0, 1.0, 0.25, 2.0)
LABELS = (True, False, True, True, False)
SCORE = HeadConfig("sequence", ("reward",), "regression")
# (loss, share of flipped pairs, weight of the cross-entropy)
PAIR_LOSSES = {
    "sigmoid": ("sigmoid", 0.0, 0.0),
    "hinge": ("hinge", 0.0, 0.0),
    "ipo": ("ipo", 0.0, 0.0),
    "robust": ("robust", 0.2, 0.0),
    "sigmoid_norm": ("sigmoid_norm", 0.0, 0.0),
    "sigmoid_sft": ("sigmoid", 0.0, 0.3),
}
BETA = 0.4


def network(seed: int, head: HeadConfig | None = None) -> Any:
    """A random llama of two blocks."""
    config = GPTConfig(
        layout="llama",
        vocab_size=VOCABULARY,
        width=16,
        layers=2,
        heads=2,
        hidden=32,
        context=64,
        tied=False,
        head=head or HeadConfig(),
    )
    made = build(config, seed=0)
    randomise(made, seed=seed)
    return made.eval()


def id_rows() -> list[dict[str, list[int]]]:
    """Prompts with two answers each, as token ids; no row begins or ends with another's."""
    draw = np.random.default_rng(5)

    def some(least: int, most: int) -> list[int]:
        ids: list[int] = draw.integers(2, VOCABULARY, int(draw.integers(least, most))).tolist()
        return ids

    return [
        {"prompt_ids": some(2, 7), "chosen_ids": some(1, 9), "rejected_ids": some(1, 9)}
        for _ in range(PAIRS)
    ]


def batch_of(
    windows: list[tuple[list[int], list[int]]], *, scored: bool = False
) -> PreferenceBatch:
    """A batch of prompts with answers: the first half of the windows, then the second."""
    rows = [[*prompt, *answer] for prompt, answer in windows]
    lengths = np.array([len(row) for row in rows])
    ids = np.array([number for row in rows for number in row])
    starts = np.cumsum(lengths) - lengths
    read = [
        np.arange(start + len(prompt) - 1, start + length - 1)
        for start, length, (prompt, _) in zip(starts, lengths, windows, strict=True)
    ]
    owners = np.repeat(np.arange(len(rows)), [len(each) for each in read])
    places = np.concatenate(read)
    return PreferenceBatch(
        rows=lay(ids, np.zeros_like(ids), lengths),
        read=torch.from_numpy(starts + lengths - 1 if scored else places),
        targets=torch.from_numpy(ids[places + 1]),
        owners=torch.from_numpy(owners),
        reference=None,
        labels=torch.tensor(LABELS),
        margins=torch.tensor(MARGINS),
        target_count=len(rows) / 2,
        number=0,
        places=[f"row {number}" for number in range(len(rows) // 2)],
    )


def pair_batch(*, scored: bool = False) -> PreferenceBatch:
    rows = id_rows()
    chosen = [(row["prompt_ids"], row["chosen_ids"]) for row in rows]
    rejected = [(row["prompt_ids"], row["rejected_ids"]) for row in rows]
    return batch_of(chosen + rejected, scored=scored)


def judged_batch() -> PreferenceBatch:
    """The chosen answers, and to each prompt the answer of the row before."""
    rows = id_rows()
    own = [(row["prompt_ids"], row["chosen_ids"]) for row in rows]
    others = [(row["prompt_ids"], rows[at - 1]["chosen_ids"]) for at, row in enumerate(rows)]
    return batch_of(own + others)


def with_reference(batch: PreferenceBatch, lower: float = 0.0) -> PreferenceBatch:
    """A batch with the log-probabilities of another network, less so many nats."""
    with torch.no_grad():
        return replace(batch, reference=answer_log_probs(network(4), batch).sums - lower)


def gradient_norm(learner: Any, loss: torch.Tensor) -> float:
    learner.zero_grad()
    loss.backward()
    found = [each.grad for each in learner.parameters() if each.grad is not None]
    return float(torch.stack([each.square().sum() for each in found]).sum().sqrt())
