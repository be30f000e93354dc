"""What a training keeps in vain is given back, and not at every step."""

from bedstone import runtime
from bedstone.runtime import KeptMemory


def test_memory_is_given_back_where_it_has_grown(monkeypatch):
    sizes = iter([100, 120, 130, 131, 90, 110, 131, 150, 131])
    given_back = []
    monkeypatch.setattr(runtime, "resident", lambda: next(sizes))
    memory = KeptMemory()
    memory._trim = given_back.append
    found = []
    for _ in range(9):
        memory.after_step()
        found.append((memory.needed, len(given_back)))
    # 131 is over 1.3 times 100; the step after it, of 90, measures no less than was known
    assert found == [(100, 0), (100, 0), (100, 0), (100, 1), (100, 1), (100, 1), (100, 2),
                     (150, 2), (150, 2)]  # fmt: skip
