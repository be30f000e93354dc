"""What an agent keeps for later runs: notes in an index on disk, found again by their meaning.

`memory=FOLDER` on the command line. A note is on the disk when its call returns; it is there once,
however often it is written. What a note says may come from a text that others wrote, in an earlier
run, so notes count as such: they are no orders, and they never let an action through
(`agent.policy`).
"""

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from bedstone.agent.tools import Tool, tool
from bedstone.checkpoints.load import open_model
from bedstone.checkpoints.model import fingerprint
from bedstone.errors import BedstoneError
from bedstone.reading import to_path
from bedstone.tasks.search.index import Index, Row
from bedstone.tasks.text.feature_extraction import TextEmbedder

LONGEST = 2000  # characters of a note
FOUND = 5  # notes of a search, at most
NEAR = 0.25  # the least cosine of a note that is returned


class Memory:
    """Notes in an index.

    Args:
        folder: of the index; it is made if it isn't there.
        model: of sentence embeddings.

    Raises:
        BedstoneError: the folder holds something else, or the index is of another model.
    """

    def __init__(self, folder: str | Path, model: str = "minilm") -> None:
        opened = open_model(model)
        self._embedder = TextEmbedder(opened)
        self.index = Index.create(
            to_path(str(folder), "memory"), self._embedder.width, fingerprint(opened), model=model
        )

    def keep(self, note: str) -> str:
        """Keeps a note; returns its key.

        Raises:
            BedstoneError: it is empty or too long, or another process writes.
        """
        note = " ".join(note.split())
        if not 0 < len(note) <= LONGEST:
            raise BedstoneError(
                f"note: has {len(note):,} characters; expected 1 to {LONGEST:,}. Shorten it."
            )
        key = hashlib.sha256(note.encode()).hexdigest()[:16]
        written = datetime.now(UTC).isoformat(timespec="seconds")
        with self.index as index:
            index.add([Row(key, self._vector(note), {"note": note, "written": written})])
        return key

    def find(self, query: str) -> list[dict[str, Any]]:
        """Notes about a query, the nearest first: note, written, score."""
        found = self.index.search(self._vector(query), FOUND)
        return [{**one.columns, "score": round(one.score, 3)} for one in found if one.score >= NEAR]

    def _vector(self, text: str) -> np.ndarray:
        return self._embedder.texts([text])[0]


def memory_tools(folder: str | Path, model: str = "minilm") -> list[Tool]:
    """Tools that keep notes and find them again, in this run or a later one.

    Raises:
        BedstoneError: as `Memory`.
    """
    memory = Memory(folder, model)

    def remember(note: str) -> str:
        """Keeps a note for later, such as a fact that was found out."""
        memory.keep(note)
        return "kept"

    def recall(query: str) -> list[dict[str, Any]]:
        """Finds notes that were kept, by their meaning."""
        return memory.find(query)

    return [tool(remember, untrusted=False), tool(recall, effects=False)]
