"""Figures of a server by the names that vLLM gives them, in Prometheus' text format.

Each model's figures are changed by its own thread, and read by whoever asks: a reader may see some
of them a request ahead of others.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

FIRST = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 30.0)
BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28)
WHOLE = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Histogram:
    """Counts of seconds, by upper bounds."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds

    def lines(self, name: str, label: str) -> Iterator[str]:
        total = 0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            total += count
            yield f'{name}_bucket{{{label},le="{bound}"}} {total}'
        yield f"{name}_sum{{{label}}} {self.sum}"
        yield f"{name}_count{{{label}}} {total}"


class ModelMetrics:
    """The figures of one model."""

    def __init__(self) -> None:
        self.running = self.waiting = self.refused = 0
        self.kept = 0.0  # share of the memory for keys and values that is in use
        self.prefix_queries = self.prefix_hits = 0
        self.prompt_tokens = self.generation_tokens = 0
        self.drafted = self.accepted = 0
        self.successes: Counter[str] = Counter()
        self.first = Histogram(FIRST)
        self.between = Histogram(BETWEEN)
        self.ended = Histogram(WHOLE)
        self.queued = Histogram(WHOLE)
        self.prefilled = Histogram(WHOLE)
        self.decoded = Histogram(WHOLE)

    def finished(self, reason: str) -> None:
        self.successes[reason] += 1


# Name, kind, what it says, and where it stands.
_PLAIN = (
    ("num_requests_running", "gauge", "Requests that are computed.", "running"),
    ("num_requests_waiting", "gauge", "Requests that wait.", "waiting"),
    ("kv_cache_usage_perc", "gauge", "Share of key/value memory in use, 0 to 1.", "kept"),
    ("prefix_cache_queries_total", "counter", "Prompt tokens that were looked up.",
     "prefix_queries"),
    ("prefix_cache_hits_total", "counter", "Those that were known.", "prefix_hits"),
    ("prompt_tokens_total", "counter", "Tokens of prompts.", "prompt_tokens"),
    ("generation_tokens_total", "counter", "Tokens generated.", "generation_tokens"),
    ("spec_decode_num_draft_tokens_total", "counter", "Tokens that were drafted.", "drafted"),
    ("spec_decode_num_accepted_tokens_total", "counter", "Those that came true.", "accepted"),
    ("num_requests_refused_total", "counter", "Requests refused as too many waited.", "refused"),
)  # fmt: skip
_TIMES = (
    ("time_to_first_token_seconds", "From arrival to the first token.", "first"),
    ("inter_token_latency_seconds", "Between two tokens of a request.", "between"),
    ("e2e_request_latency_seconds", "From arrival to the last token.", "ended"),
    ("request_queue_time_seconds", "That a request waited.", "queued"),
    ("request_prefill_time_seconds", "That reading a prompt took.", "prefilled"),
    ("request_decode_time_seconds", "From the beginning to the last token.", "decoded"),
)


def text_of(models: Mapping[str, ModelMetrics], more: str = "") -> str:
    """All figures, in Prometheus' text format 0.0.4.

    Args:
        more: labels beside the model's name, each after a comma.
    """
    labels = {name: f'model_name="{_escaped(name)}"{more}' for name in models}
    lines: list[str] = []
    for name, kind, what, place in _PLAIN:
        lines += _head(name, kind, what)
        lines += [
            f"vllm:{name}{{{labels[model]}}} {getattr(each, place)}"
            for model, each in models.items()
        ]
    lines += _head("request_success_total", "counter", "Requests that ended, by reason.")
    for model, each in models.items():
        for reason, count in sorted({"stop": 0, "length": 0, "abort": 0, **each.successes}.items()):
            label = f'{labels[model]},finished_reason="{reason}"'
            lines.append(f"vllm:request_success_total{{{label}}} {count}")
    for name, what, place in _TIMES:
        lines += _head(name, "histogram", what)
        for model, each in models.items():
            lines += getattr(each, place).lines(f"vllm:{name}", labels[model])
    return "\n".join(lines) + "\n"


def merged(texts: Sequence[str]) -> str:
    """The figures of several processes, which differ in a label, as one text."""
    lines: dict[str, list[str]] = {}  # by the name that they follow
    for text in texts:
        head = ""
        for line in text.splitlines():
            if line.startswith("# HELP"):
                head = line
            if line not in lines.setdefault(head, []):
                lines[head].append(line)
    return "".join(f"{line}\n" for own in lines.values() for line in own)


def _head(name: str, kind: str, what: str) -> list[str]:
    return [f"# HELP vllm:{name} {what}", f"# TYPE vllm:{name} {kind}"]


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
