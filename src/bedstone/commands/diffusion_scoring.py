"""How well a network that draws has learnt: its loss on held-out signals, and what it draws.

Shapes: B rows, C channels; *S the sizes of a signal.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bedstone.checkpoints.drawing import DrawingModel
from bedstone.data.conditions import Condition, class_condition
from bedstone.data.signal_batches import SignalTexts, in_batches
from bedstone.data.signals import Signals
from bedstone.generation.drawing import Asked, draw, generators_of
from bedstone.inspect.samples import samples_sheet
from bedstone.inspect.shown import as_pictures
from bedstone.objectives.diffusion import Denoising
from bedstone.runtime import Precision

TOGETHER = 256  # rows of a pass


@dataclass
class DrawingScorer:
    """Figures of a network in training, and a sheet of what it draws.

    Attributes:
        model: whose network it is.
        objective: what it learns by.
        held: signals held out, latents where latents are drawn.
        texts: their captions by their tokens.
        precision: in which it computes.
        rows: held-out rows that are read at most.
        samples: how many are drawn.
        sheet: where what is drawn is shown.
    """

    model: DrawingModel
    objective: Denoising
    held: Signals
    texts: SignalTexts | None
    precision: Precision
    rows: int
    samples: int
    sheet: Path

    def figures(self, network: nn.Module) -> dict[str, float]:
        """`validation_loss`: with the same noise and times every time."""
        network.eval()
        total, count = 0.0, 0.0
        devices = [self.precision.device] if self.precision.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(0)
            for batch in in_batches(self.held, TOGETHER, self.texts, self.rows):
                with self.precision.autocast():
                    loss, rows = self.objective(network, batch.to(self.precision.device))
                total, count = total + loss.item(), count + rows
        if self.samples:
            self.show()
        return {"validation_loss": total / count}

    def show(self) -> Path:
        """Draws the first held-out rows' conditions anew, always from the same noise."""
        drawn, told = self.drawn()
        return samples_sheet(drawn, self.sheet, titles=told)

    def drawn(self) -> tuple[Tensor, list[str]]:
        """(B, C, H, W) pictures, and what each was to be."""
        model = self.model
        condition, null, told = self._asked()
        drawn = draw(
            model.network,
            model.process,
            model.target,
            self.held.shape,
            model.sampling,
            generators_of(range(self.samples)),
            condition=condition,
            null=null,
            asked=Asked(most_rows=TOGETHER),
            autocast=self.precision.autocast,
        )
        if model.autoencoder is not None:
            drawn = model.autoencoder.network.pictures(drawn)
        return as_pictures(drawn, model.signal.kind), told

    def _asked(self) -> tuple[Condition | None, Condition | None, list[str]]:
        names = self.model.signal.names
        if self.texts is not None and self.held.captions is not None:
            rows = np.arange(self.samples) % len(self.held)
            told = [self.held.captions[row][0] for row in rows]
            return self.texts.draw(rows, None)[0], self.texts.null, told  # cut, as in training
        if self.model.signal.condition != "class":
            return None, None, [""] * self.samples
        classes = [number % len(names) for number in range(self.samples)]
        count = len(names)
        found = class_condition(classes, count), class_condition([count], count)
        return *found, [names[one] for one in classes]
