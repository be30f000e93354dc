"""Work on rows for tests of places: numbers are doubled, and some words make trouble."""

import json
import os
import time
from pathlib import Path


def open_doubling(folder: str = "", seconds: float = 0.0):
    """Doubles numbers. "raise" raises, "die" ends the process; "once" ends it the first time.

    Args:
        folder: where it is noted who did what.
        seconds: of a block.
    """
    if folder:
        Path(folder, f"opened-{os.getpid()}").touch()

    def one(row):
        if row == "raise":
            raise ValueError("no number")
        if row == "die":
            os._exit(1)
        if row == "once":
            if not Path(folder, "died").exists():
                Path(folder, "died").touch()
                os._exit(1)
            return json.dumps("once")
        return json.dumps(2 * row)

    def work(rows):
        time.sleep(seconds)
        return [one(row) for row in rows]

    return work
