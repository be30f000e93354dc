"""How heads are published: the class in `architectures`, labels, the kind of problem."""

from typing import Any

from bedstone.errors import BedstoneError
from bedstone.models.heads import HeadConfig

_SUFFIXES = {
    "ForPreTraining": "pretraining",
    "ForSequenceClassification": "sequence",
    "ForTokenClassification": "tokens",
    "ForQuestionAnswering": "spans",
}
_LANGUAGE = ("ForMaskedLM", "ForCausalLM", "LMHeadModel")
_PROBLEMS = {
    "single": "single_label_classification",
    "multi": "multi_label_classification",
    "regression": "regression",
}


def architecture(stem: str, language: str, head: HeadConfig) -> str:
    """The published class: `stem` is as in BertModel, `language` the ending for its words."""
    endings = {kind: ending for ending, kind in _SUFFIXES.items()}
    return stem + {**endings, "language": language}.get(head.kind, "Model")


def read_head(config: dict[str, Any], *, bare: str) -> HeadConfig:
    """The head that a published configuration says its weights have.

    Args:
        bare: the kind of head where the class is the body alone, or none is named.

    Raises:
        BedstoneError: a class that Bedstone has no head for, or labels that don't fit.
    """
    name = (config.get("architectures") or ["Model"])[0]
    if name.endswith(_LANGUAGE):
        return HeadConfig("language")
    kind = next((kind for ending, kind in _SUFFIXES.items() if name.endswith(ending)), None)
    if kind is None:
        if not name.endswith("Model"):
            known = ", ".join([*_LANGUAGE, *_SUFFIXES, "Model"])
            raise BedstoneError(
                f"config.json: architectures names {name!r}, a head that Bedstone doesn't have; "
                f"classes that end in {known} open."
            )
        return HeadConfig(bare)
    if kind not in ("sequence", "tokens"):
        return HeadConfig(kind)
    return HeadConfig(kind, _labels(config), _problem(config))


def _labels(config: dict[str, Any]) -> tuple[str, ...]:
    named = config.get("id2label")
    if not named:
        return tuple(f"LABEL_{i}" for i in range(config.get("num_labels") or 2))
    try:
        by_id = {int(number): str(label) for number, label in named.items()}
        return tuple(by_id[i] for i in range(len(by_id)))
    except (KeyError, ValueError, AttributeError):
        raise BedstoneError(
            f"config.json: id2label = {named!r} isn't a mapping of 0, 1, 2, ... to labels."
        ) from None


def _problem(config: dict[str, Any]) -> str:
    told = config.get("problem_type")
    if told is None:
        return "regression" if len(config.get("id2label") or "ab") == 1 else "single"
    problems = {theirs: ours for ours, theirs in _PROBLEMS.items()}
    if told not in problems:
        raise BedstoneError(
            f"config.json: problem_type = {told!r}; expected one of {', '.join(problems)}."
        )
    return problems[told]


def write_head(head: HeadConfig) -> dict[str, Any]:
    """Labels and problem, as the published configuration has them."""
    if head.kind not in ("sequence", "tokens"):
        return {}
    labels = {
        "id2label": {str(i): label for i, label in enumerate(head.labels)},
        "label2id": {label: i for i, label in enumerate(head.labels)},
    }
    return labels | ({"problem_type": _PROBLEMS[head.problem]} if head.kind == "sequence" else {})
