"""What commands share that may ask a model behind an endpoint: options, and how it is opened."""

from dataclasses import dataclass
from typing import Any

from bedstone.checkpoints.model import Model
from bedstone.errors import BedstoneError
from bedstone.remote.endpoint import is_remote
from bedstone.remote.ledger import Budget, Cassette, Price
from bedstone.remote.model import RemoteModel
from bedstone.settings import number, optional, whole
from bedstone.tasks.pipeline import open_decoder


@dataclass(frozen=True)
class Asking:
    """Options of a model behind an endpoint, openai:NAME or http://host/v1#NAME.

    Attributes:
        budget_tokens: number of tokens that all requests together may take at most.
        budget_money: the same in money, in the currency of `price`.
        price: of a million tokens: read,written, such as 0.15,0.60.
        record: file that answers are recorded in, by what was asked; it holds no key.
        replay: file of recorded answers, instead of asking.
    """

    budget_tokens: int | None = optional(whole(1))
    budget_money: float | None = optional(number(0, open_least=True))
    price: str | None = None
    record: str | None = None
    replay: str | None = None


def open_remote(model: str, asking: Asking) -> RemoteModel | None:
    """A model behind an endpoint with its budget; None where the name is of another model.

    Raises:
        BedstoneError: options don't fit, or one of endpoints is given for one of ours.
    """
    if not is_remote(model):
        for name, value in vars(asking).items():
            if value is not None:
                raise BedstoneError(
                    f"--{name.replace('_', '-')}: serves a model behind an endpoint. Leave it out."
                )
        return None
    if asking.record and asking.replay:
        raise BedstoneError("--record: was given beside --replay. Leave one of them out.")
    tape = asking.record or asking.replay
    return RemoteModel(
        model,
        budget=Budget(asking.budget_tokens, asking.budget_money, _price(asking.price)),
        cassette=Cassette(tape, replay=asking.replay is not None) if tape else None,
    )


def open_writer(model: str, device: Any, asking: Asking) -> Model | RemoteModel:
    """A decoder, or one behind an endpoint.

    Raises:
        BedstoneError: as `open_remote`, or the model can't be opened.
    """
    return open_remote(model, asking) or open_decoder(model, device)


def refuse_for_remote(model: str, **given: Any) -> None:
    """Raises BedstoneError for options that a model behind an endpoint has no use for.

    Args:
        given: options by name; what is None, False or "auto" wasn't given.
    """
    for name, value in given.items():
        if value not in (None, False, "auto", ""):
            raise BedstoneError(
                f"--{name.replace('_', '-')}: {model} is behind an endpoint, which computes as it "
                "does. Leave it out."
            )


def spent(model: RemoteModel) -> str:
    """What requests took."""
    budget = model.endpoint.budget
    money = f", {budget.cost:.4f} by the price" if budget.cost else ""
    return f"{budget.requests:,} requests, {budget.spent.tokens:,} tokens{money}"


def _price(given: str | None) -> Price | None:
    if given is None:
        return None
    try:
        read, written = map(float, given.split(","))
    except ValueError:
        read = written = -1.0
    if not (0 <= read < float("inf") and 0 <= written < float("inf")):
        raise BedstoneError(
            f"--price: {given!r} was given; expected the prices of a million tokens, read,written, "
            "such as 0.15,0.60."
        )
    return Price(read, written)
