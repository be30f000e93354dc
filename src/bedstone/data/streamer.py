"""Text out of token ids as they are generated, one by one."""

from collections.abc import Callable


class Streamer:
    """Text from ids, piece by piece, never half a character.

    The pieces and the `flush` at the end, joined, are what `decode` gives for all ids at once.
    """

    def __init__(self, decode: Callable[[list[int]], str]):
        self._decode = decode
        self._ids: list[int] = []  # from the last piece that was given out on
        self._given = 0  # how many of those that piece had

    def push(self, number: int) -> str:
        """The text that is certain now that this id follows; often empty."""
        self._ids.append(int(number))
        return self._step(final=False)

    def flush(self) -> str:
        """What is left at the end: an unfinished character shows as U+FFFD."""
        return self._step(final=True)

    def _step(self, final: bool) -> str:
        # Decoders treat the start of a text differently (Llama drops a space there), so new ids are
        # decoded after those of the last piece and what was given out is cut off.
        text = self._decode(self._ids)
        if text.endswith("�") and not final:
            return ""
        before = self._decode(self._ids[: self._given])
        new = text[len(before) :]
        if new:
            self._ids = self._ids[self._given :]
            self._given = len(self._ids)
        return new
