"""Text inference: rows of tokens are packed into batches and read by the network, in order.

Rows are sorted by length and laid end to end in batches without padding, so a batch's size changes
neither the results nor, much, the time a token takes. On a CPU each core reads a batch of its own:
products this small lose much of their time where cores share each and wait for one another.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from bedstone.checkpoints.model import Model, tokenizer_of
from bedstone.data.text.encode import Input
from bedstone.data.text.packing import Packed, pack
from bedstone.models.heads import PretrainingHeads
from bedstone.nn.fast.inference import for_mixed_inference
from bedstone.nn.fast.pick import prepared, settled
from bedstone.runtime import check_finite, pick_precision

TOKENS = 2048  # of a batch: enough for large products, few enough to stay in the cache

# The states asked for, (M, D), or those of all tokens, (N, D); and the rows: to one output a row.
Read = Callable[[Tensor, Packed, Sequence[Input]], Sequence[Any]]
# The places in the packed row whose states are asked for, M of them, in order.
Places = Callable[[Packed, Sequence[Input]], Sequence[int]]


class Engine:
    """A model's network for inference, its head and its tokenizer.

    Raises:
        BedstoneError: the model has no tokenizer.
    """

    def __init__(self, model: Model, precision: str = "fp32") -> None:
        self.model = model
        self.tokenizer = tokenizer_of(model)
        self.device = next(model.network.parameters()).device
        self.network = _ready(model, precision, self.device)

    @property
    def limit(self) -> int:
        """The most tokens a row may have: the network's, or fewer where its tokenizer says so."""
        limit = self.tokenizer.settings.get("model_max_length")
        context = int(self.model.config.context)
        return min(context, limit) if isinstance(limit, int) and limit > 0 else context

    def run(
        self,
        rows: Sequence[Sequence[Input]],
        read: Read,
        batch_size: int | None = None,
        places: Places | None = None,
    ) -> list[list[Any]]:
        """What `read` makes of each window of each row.

        Args:
            places: says which states are asked for, so no others are computed at last; None asks
                for all.
            batch_size: windows read at a time, at most; None asks for `TOKENS` tokens.
        """
        windows = [window for row in rows for window in row]
        outputs = iter(self._windows(windows, read, batch_size, places))
        return [list(itertools.islice(outputs, len(row))) for row in rows]

    def _windows(
        self,
        windows: Sequence[Input],
        read: Read,
        batch_size: int | None,
        places: Places | None,
    ) -> list[Any]:
        done: list[Any] = [None] * len(windows)

        @torch.inference_mode()
        def one(part: list[int]) -> None:
            rows = [windows[number] for number in part]
            packed = pack(rows)
            chosen = None if places is None else torch.tensor(places(packed, rows))
            chosen = None if chosen is None else chosen.to(self.device)
            states = self.network.packed_states(packed.to(self.device), chosen)
            check_finite(states, "the network's states")
            for number, output in zip(part, read(states, packed, rows), strict=True):
                done[number] = output

        parts = list(batches([len(window) for window in windows], batch_size))
        if self.device.type == "cpu":
            _on_all_cores(one, parts[::-1])  # the largest first, so that all end together
        else:
            for part in parts:
                one(part)
        return done

    def head(self, states: Tensor) -> Tensor:
        """The head's outputs in fp32, on the CPU; of two pretraining heads, the words'."""
        head = self.network.head
        head = head.words if isinstance(head, PretrainingHeads) else head
        found: Tensor = head(states).float().cpu()
        check_finite(found, "the head's outputs")
        return found

    def row_places(self, packed: Packed, rows: Sequence[Input]) -> list[int]:
        """Where a head that reads a row once reads: at its first token or its last."""
        if getattr(self.network.head, "reads", "first") == "last":
            return [end - 1 for end in packed.starts[1:]]
        return packed.starts[:-1]

    def head_of_tokens(self, states: Tensor, packed: Packed) -> Sequence[Tensor]:
        """The head's outputs for each token, (T, L) a row."""
        return self.head(states).split(list(packed.lengths))


def _ready(model: Model, precision: str, device: torch.device) -> Any:
    """The network in a precision by its name; `mixed` is fp32 but for late MLPs."""
    if precision != "mixed":
        return prepared(model.network, pick_precision(precision, device))
    rough = settled(model.network, pick_precision("auto", device)).dtype
    return for_mixed_inference(model.network, rough)


def batches(lengths: Sequence[int], batch_size: int | None) -> Iterator[list[int]]:
    """Numbers of rows, by length, in batches of at most `batch_size` rows and `TOKENS` tokens."""
    part: list[int] = []
    tokens = 0
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        full = tokens + lengths[number] > TOKENS or len(part) == batch_size
        if part and full:
            yield part
            part, tokens = [], 0
        part.append(number)
        tokens += lengths[number]
    if part:
        yield part


def _on_all_cores(work: Callable[[list[int]], None], parts: Sequence[list[int]]) -> None:
    """Does all parts, one on each of torch's threads at a time; a single one on all of them."""
    threads = torch.get_num_threads()
    if min(threads, len(parts)) < 2:
        for part in parts:
            work(part)
        return
    try:
        # How many threads torch uses is each calling thread's own setting, and the latest is what
        # threads made later begin with: hence it is set again.
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for _ in pool.map(work, parts):
                pass
    finally:
        torch.set_num_threads(threads)
