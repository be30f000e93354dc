"""The form in which a GPT reads and writes of pictures.

One form in pretraining on text, in learning to see and in use: `Question: what ...? Answer: red`
and `Caption: a red circle`.
"""

QUESTION = "Question: {} Answer:"
CAPTION = "Caption:"


def question_text(question: str) -> str:
    """What a GPT reads of a question; the answer follows."""
    return QUESTION.format(question.strip())


def said_text(text: str) -> str:
    """An answer or a caption as it stands behind its prompt."""
    return f" {text.strip()}"
