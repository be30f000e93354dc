"""Linear probes: what can be read off a network's states by layer, and what a probe makes up.

A probe that learns a task well may have learnt it by itself. Beside each stands one of a control
task (Hewitt and Liang, 2019): the same tokens with a label drawn at random for each kind of word,
which nothing but the probe's own memory can learn. Selectivity is what the true task has beyond it.

Shapes: n tokens or texts, D width, K labels, L blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import Model, tokenizer_of
from bedstone.data.text.encode import Input, read_word_lists, text_input
from bedstone.errors import BedstoneError
from bedstone.inspect.explain import twin
from bedstone.inspect.lens import block_states
from bedstone.report.explanation_page import Panel

HELD_OUT = 0.3  # share of rows that a probe is measured on
PENALTY = 1e-3  # on squared weights
STEPS = 60  # of L-BFGS, at most
ROWS = 2000  # that are read, at most


@dataclass(frozen=True)
class Probed:
    """A probe of one layer.

    Attributes:
        layer: embedding, or block 1 to L.
        accuracy: on held-out rows.
        control: of the control task, on them.
        bits: that the labels of held-out rows cost by the probe, each on average.
    """

    layer: str
    accuracy: float
    control: float
    bits: float

    @property
    def selectivity(self) -> float:
        return self.accuracy - self.control


@dataclass(frozen=True)
class Probes:
    """The probes of all layers.

    Attributes:
        labels: K of them.
        count: tokens or texts, those held out among them.
        majority: accuracy of the commonest label.
        layers: the embedding first.
    """

    labels: tuple[str, ...]
    count: int
    majority: float
    layers: tuple[Probed, ...]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        layers = [{**vars(each), "selectivity": each.selectivity} for each in self.layers]
        return {
            "labels": list(self.labels),
            "count": self.count,
            "majority": self.majority,
            "layers": layers,
        }

    def panel(self) -> Panel:
        """For a page."""
        head = ["layer", "accuracy", "control task", "selectivity", "bits a label"]
        rows = [
            [
                each.layer,
                f"{each.accuracy:.3f}",
                f"{each.control:.3f}",
                f"{each.selectivity:+.3f}",
                f"{each.bits:.3f}",
            ]
            for each in self.layers
        ]
        facts = {"labels": ", ".join(self.labels[:20]), "rows": f"{self.count:,}"}
        facts["commonest label alone"] = f"{self.majority:.3f}"
        note = (
            "Accuracy on held-out rows. The control task has a random label for each kind of word: "
            "what is no better than it says nothing of the network."
        )
        return Panel("Linear probes", facts, tables={"Layers": [head, *rows]}, note=note)


def probe(
    model: Model | str | Path, texts: Sequence[Any], labels: Sequence[Any], *, seed: int = 0
) -> Probes:
    """Linear probes of every layer of a network that reads text.

        probe("minilm", [["Paris", "sleeps"], ...], [["place", "other"], ...])

    Args:
        texts: texts with a label each, or lists of words with a label for each word, which is read
            off the mean of its tokens; of a text off the mean of all.
        labels: likewise.
        seed: of the split and of the control task.

    Raises:
        BedstoneError: the model reads no text by blocks, or the rows don't fit.
    """
    if len(texts) != len(labels) or len(texts) < 10:
        raise BedstoneError(
            f"probe: {len(labels):,} rows of labels for {len(texts):,} texts; expected as many, "
            "and 10 or more."
        )
    opened = model if isinstance(model, Model) else open_model(model)
    network = opened.network
    if not hasattr(network, "stack") or not hasattr(network, "embed"):
        raise BedstoneError("probe: needs a network that reads text by blocks, a GPT or a BERT.")
    by_word = not isinstance(texts[0], str)
    tokenizer = tokenizer_of(opened)
    rows = [_read(tokenizer, text) for text in texts[:ROWS]]
    states, targets, kinds, owners = [], [], [], []
    whole = twin(network)
    for number, (row, text, own) in enumerate(zip(rows, texts, labels, strict=False)):
        layers = _layers(whole, row)  # (L + 1, T, D)
        if by_word:
            if len(text) != len(own):
                raise BedstoneError(
                    f"probe: row {number} has {len(own)} labels for {len(text)} words."
                )
            words = sorted({word for word in row.words if word is not None})
            owned = [[at for at, one in enumerate(row.words) if one == word] for word in words]
            states.append(torch.stack([layers[:, places].mean(1) for places in owned], 1))
            targets += [own[word] for word in words]
            kinds += [str(text[word]) for word in words]
            owners += [number] * len(words)
        else:
            states.append(layers.mean(1, keepdim=True))
            targets.append(own)
            kinds.append(str(text))
            owners.append(number)
    return _probes(torch.cat(states, 1), targets, kinds, np.array(owners), seed)


def _read(tokenizer: Any, text: Any) -> Input:
    """A text, or a list of words, as a row."""
    if isinstance(text, str):
        return text_input(tokenizer, text)
    (own,) = read_word_lists(tokenizer, [list(text)])
    size = len(own)
    return Input(own.ids, [0] * size, own.offsets, [0] * size, own.words)


def _layers(network: Any, row: Input) -> Tensor:
    """States before all blocks and after each, (L + 1, T, D)."""
    ids = torch.tensor([row.ids], device=network.embed.weight.device)
    return torch.cat(block_states(network.stack, lambda: network.states(ids))).float()


def _probes(
    states: Tensor, targets: Sequence[Any], kinds: Sequence[str], owners: np.ndarray, seed: int
) -> Probes:
    """Probes of states (L + 1, n, D)."""
    names = tuple(sorted({str(each) for each in targets}))
    if len(names) < 2:
        raise BedstoneError("probe: all labels are the same; expected two or more.")
    known = {name: number for number, name in enumerate(names)}
    wanted = torch.tensor([known[str(each)] for each in targets])
    random = np.random.default_rng(seed)
    # rows are held out whole: words of one text know one another
    held = random.permutation(owners.max() + 1)[: max(1, round(HELD_OUT * (owners.max() + 1)))]
    test = torch.from_numpy(np.isin(owners, held))
    drawn = {kind: int(random.integers(len(names))) for kind in dict.fromkeys(kinds)}
    control = torch.tensor([drawn[kind] for kind in kinds])
    layers = []
    for number, layer in enumerate(states.cpu()):
        accuracy, bits = _fit(layer, wanted, test, len(names))
        beside, _ = _fit(layer, control, test, len(names))
        name = "embedding" if number == 0 else f"block {number}"
        layers.append(Probed(name, accuracy, beside, bits))
    common = torch.bincount(wanted[~test], minlength=len(names)).argmax()
    majority = float((wanted[test] == common).double().mean())
    return Probes(names, len(wanted), majority, tuple(layers))


def _fit(states: Tensor, wanted: Tensor, test: Tensor, count: int) -> tuple[float, float]:
    """Accuracy, and bits a label, of a linear probe on held-out rows."""
    train = states[~test]
    mean, spread = train.mean(0), train.std(0).clamp_min(1e-6)
    x = (states - mean) / spread
    layer = nn.Linear(x.shape[1], count)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = F.cross_entropy(layer(x[~test]), wanted[~test])
        found = found + PENALTY * layer.weight.square().sum()
        found.backward()
        return found

    optimizer.step(loss)
    with torch.no_grad():
        logits = layer(x[test])
        right = (logits.argmax(-1) == wanted[test]).double().mean()
        nats = F.cross_entropy(logits, wanted[test])
    return float(right), float(nats) / float(np.log(2))
