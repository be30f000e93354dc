"""A help desk over documents of one's own: an answer, and the passages that it rests on.

    python examples/help_desk.py docs "How do I resume a run that was killed?"
    python examples/help_desk.py docs "..." --model openai:gpt-4o-mini [--agent]

The question finds passages by their meaning; where none is near, the answer is that nobody knows.
Without a model the answer is quoted: the sentences of the passages that are nearest to the
question. A chat model, here or behind an endpoint, writes an answer from the passages; with
`--agent` it searches by itself, as often as it wants. Passages are printed with their files, so
that a reader can check: a small model may say more than they do.
"""

import argparse
import re
from typing import Any

import bedstone
from bedstone.agent.drivers import LocalDriver, RemoteDriver
from bedstone.agent.loop import Agent, Driver, Limits
from bedstone.agent.own_tools import EMBEDDER, search_tool
from bedstone.remote.endpoint import is_remote
from bedstone.remote.model import RemoteModel

NEAR = 0.4  # the least cosine of a passage that may answer
PASSAGES = 3
QUOTED = 2  # sentences
UNKNOWN = "I don't know: no passage is about that."
ASK = (
    "Answer the question in one or two sentences with what these passages say. If they don't "
    "answer it, say: I don't know.\n\n{passages}\n\nQuestion: {question}"
)


def near(question: str, search: Any) -> list[dict[str, Any]]:
    """The passages that may answer."""
    return [each for each in search(question) if each["score"] >= NEAR][:PASSAGES]


def quoted(question: str, found: list[dict[str, Any]]) -> str:
    """The sentences of passages that are nearest to the question."""
    text = "\n".join(each["text"] for each in found)
    sentences = [each.strip() for each in re.split(r"(?<=[.!?:])\s+|\n+|\|", text)]
    sentences = [each for each in dict.fromkeys(sentences) if len(each.split()) > 3]
    rank = bedstone.pipeline("semantic-search", EMBEDDER, texts=sentences)
    best = {one["corpus_id"] for one in rank(question, top_k=QUOTED)}
    return " ... ".join(each for n, each in enumerate(sentences) if n in best)


def written(question: str, found: list[dict[str, Any]], model: str) -> str:
    """A chat model's answer from passages."""
    passages = "\n\n".join(f"{each['source']}: {each['text']}" for each in found)
    write = bedstone.pipeline("text-generation", model, return_full_text=False)
    messages = [{"role": "user", "content": ASK.format(passages=passages, question=question)}]
    answer: str = write(messages, max_new_tokens=120, do_sample=False)[0]["generated_text"]
    return answer.strip()


def agent(model: str, question: str, tool: Any) -> tuple[str, list[dict[str, Any]]]:
    """The same by an agent that searches by itself."""
    driver: Driver = (
        RemoteDriver(RemoteModel(model)) if is_remote(model) else LocalDriver(bedstone.load(model))
    )
    found = Agent(driver, [tool], limits=Limits(steps=6)).run(question)
    answer = found.answer if found.answered else f"No answer ({found.reason})."
    return answer, [{"source": one[1]["query"], "text": one[2]} for one in found.transcript.effects]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("documents", help="a text file, or a folder of them")
    parser.add_argument("question", nargs="+", help="one or more, each in quotation marks")
    parser.add_argument("--model", help="a chat model that writes the answer")
    parser.add_argument("--agent", action="store_true", help="the model searches by itself")
    options = parser.parse_args()
    if options.agent and not options.model:
        parser.error("--agent: needs --model")
    tool = search_tool(options.documents)
    for question in options.question:
        if options.agent:
            answer, passages = agent(options.model, question, tool)
        elif not (passages := near(question, tool.function)):
            answer = UNKNOWN
        elif options.model:
            answer = written(question, passages, options.model)
        else:
            answer = quoted(question, passages)
        print(f"\n{question}\n  {answer}")
        for each in passages:
            score = f" ({each['score']:.2f})" if "score" in each else ""
            print(f"  - {each['source']}{score}: {' '.join(each['text'].split())[:160]}")


if __name__ == "__main__":
    main()
