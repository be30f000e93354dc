"""A help desk over documents of one's own: an answer, and the passages that it rests on.

    python examples/help_desk.py docs "How do I resume a run that was killed?"

A chat model searches the documents as an agent and answers from what it found. Beside its answer
stand the passages, so that a reader can check it: a small model may still say more than they do.
"""

import argparse
from pathlib import Path

import bedstone
from bedstone.agent.drivers import LocalDriver
from bedstone.agent.loop import Agent, Limits
from bedstone.agent.own_tools import search_tool
from bedstone.report.agent_page import write_agent_page

SYSTEM = (
    "You answer questions about documents. First call search with the question. Then answer in one "
    "or two sentences with what the passages say, and with nothing else. If they don't say it, "
    "answer: I don't know."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("documents", help="a text file, or a folder of them")
    parser.add_argument("question")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a chat model")
    parser.add_argument("--page", type=Path, help="an HTML file that shows the whole run")
    options = parser.parse_args()
    driver = LocalDriver(bedstone.load(options.model), max_new_tokens=120)
    agent = Agent(driver, [search_tool(options.documents)], limits=Limits(steps=4), system=SYSTEM)
    found = agent.run(options.question)
    print(found.answer if found.answered else f"No answer ({found.reason}).")
    for _, arguments, passages in found.transcript.effects:
        print(f"\nsearched: {arguments['query']}\n{passages}")
    if options.page:
        print(f"\npage: {write_agent_page(options.page, found.transcript.events)}")


if __name__ == "__main__":
    main()
