"""What the cases read: texts, rows, pictures, sounds, arrays, made here out of seeds alone."""

import csv
import io
import json
import random
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

WORDS = ["the", "a", "cat", "dog", "sees", "hears", "red", "small", "house", "tree", "runs"]
GOOD, BAD = ["good", "fine", "great", "lovely"], ["bad", "poor", "awful", "dull"]
FILLING = ["the", "film", "is", "a", "story", "of", "red", "boats", "and", "it", "was"]
NAMES = ["Ada", "Bob", "Eve", "Zoe"]
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220)}
POLICY = """
counters: [small talk about the weather]
categories:
  food: {sentences: [a text about food and cooking], threshold: 0.9999, action: flag}
  money: {sentences: [a text about money and banks], action: block}
"""
DISHES = ["soup", "bread", "noodles", "pancakes", "salad", "stew", "rice", "pizza"]
SUMS = ["loan", "mortgage", "savings", "debt", "salary", "tax", "dividend", "credit"]


def make_inputs() -> None:
    """Writes all of it below `in`."""
    folder = Path("in")
    folder.mkdir()
    texts(folder)
    labelled_rows(folder)
    pictures(folder)
    told(folder)
    signals(folder)
    posts(folder)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def texts(folder: Path) -> None:
    draw = random.Random(0)
    (folder / "text").mkdir()
    for number in range(40):
        at, words = draw.randrange(len(WORDS)), []
        for _ in range(120):
            at = (at * 3 + draw.choice((1, 1, 1, 5))) % len(WORDS)
            words.append(WORDS[at])
        (folder / "text" / f"{number:03}.txt").write_text(" ".join(words) + ".\n")
    (folder / "sentences").mkdir()
    for number in range(30):
        words = WORDS[number % 3 :: 3]
        lines = [
            " ".join(words[(i * j + number) % len(words)] for j in range(1, 8)).capitalize() + "."
            for i in range(14)
        ]
        (folder / "sentences" / f"{number:02}.txt").write_text("\n".join(lines))
    write_rows(
        folder / "documents.jsonl", [{"body": f"the {a} {b}."} for a in WORDS for b in WORDS]
    )
    (folder / "notes.txt").write_text("Shares fell.\n\nThe cat sleeps.\nA boat sails at night.\n")
    (folder / "context.txt").write_text("the film is of Ada and it was a story of red boats")
    (folder / "story.txt").write_text("a picture all in red\n\nall in blue\n")
    (folder / "thesaurus.txt").write_text("film: movie, picture\nstory: tale\nred: scarlet\n")


def sentences(count: int, seed: int = 0) -> list[dict[str, Any]]:
    draw, rows = random.Random(seed), []
    for _ in range(count):
        label = draw.choice(["praise", "blame"])
        words = draw.choices(FILLING, k=draw.randint(2, 8))
        words.insert(draw.randrange(len(words)), draw.choice(GOOD if label == "praise" else BAD))
        rows.append({"text": " ".join(words), "label": label})
    return rows


def tagged(count: int, seed: int = 0) -> list[dict[str, Any]]:
    draw, rows = random.Random(seed), []
    for _ in range(count):
        words = draw.choices([*FILLING, *NAMES], k=draw.randint(3, 9))
        rows.append({"tokens": words, "ner_tags": ["B-PER" if w in NAMES else "O" for w in words]})
    return rows


def asked(count: int, seed: int = 0) -> list[dict[str, Any]]:
    draw, rows = random.Random(seed), []
    for _ in range(count):
        words, name = draw.choices(FILLING, k=draw.randint(3, 30)), draw.choice(NAMES)
        words.insert(draw.randrange(len(words)), name)
        context = " ".join(words)
        answers = {"text": [name], "answer_start": [context.index(name)]}
        rows.append({"question": "who is it ?", "context": context, "answers": answers})
    return rows


def spoken(count: int, seed: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    words = [draw.choice(FILLING) for _ in range(count)]
    return [{"prompt": f"say {word} :", "completion": f" {word} {word}"} for word in words]


def paired(count: int, seed: int = 0) -> list[dict[str, Any]]:
    rows = sentences(2 * count, seed)
    return [
        {
            "sentence1": one["text"],
            "sentence2": two["text"],
            "label": "same" if one["label"] == two["label"] else "other",
        }
        for one, two in zip(rows[::2], rows[1::2], strict=True)
    ]


def scored(count: int, seed: int = 0) -> list[dict[str, Any]]:
    return [
        {"text": row["text"], "score": 0.5 * row["text"].count("e") + (row["label"] == "praise")}
        for row in sentences(count, seed)
    ]


def several(count: int, seed: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "text": row["text"],
            "labels": [row["label"], *(["boats"] if "boats" in row["text"] else [])],
        }
        for row in sentences(count, seed)
    ]


def labelled_rows(folder: Path) -> None:
    kinds = {
        "sentences": sentences,
        "tagged": tagged,
        "asked": asked,
        "spoken": spoken,
        "paired": paired,
        "scored": scored,
        "several": several,
    }
    for name, rows in kinds.items():
        write_rows(folder / f"{name}.jsonl", rows(96))
        write_rows(folder / f"{name}-held.jsonl", rows(32, seed=1))
    with (folder / "sentences.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["review", "stars"])
        writer.writerows([row["text"], row["label"]] for row in sentences(24, seed=2))


def picture(colour: str, draw: np.random.Generator, side: int = 20) -> Image.Image:
    """A square of that colour on a noisy ground."""
    pixels = draw.integers(60, 130, (side, side, 3))
    top, left = draw.integers(1, side // 2 - 2, 2)
    pixels[top : top + side // 2, left : left + side // 2] = COLOURS[colour]
    noisy = pixels + draw.integers(-20, 20, pixels.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def png(image: Image.Image) -> bytes:
    held = io.BytesIO()
    image.save(held, "PNG")
    return held.getvalue()


def pictures(folder: Path) -> None:
    names = list(COLOURS)
    for part, count, seed in (("classes", 48, 0), ("classes-held", 18, 1)):
        draw = np.random.default_rng(seed)
        for number in range(count):
            colour = names[number % 3]
            place = folder / part / colour
            place.mkdir(parents=True, exist_ok=True)
            picture(colour, draw).save(place / f"{number:02}.png")
    draw, lines = np.random.default_rng(2), []
    (folder / "photos").mkdir()
    for number in range(24):
        colour = names[number % 3]
        name = f"{number:02}-{colour}.png"
        picture(colour, draw, 24).save(folder / "photos" / name)
        line = {"file_name": name, "text": f"a {colour} square on a grey ground, number {number}"}
        lines.append({**line, "colour": colour, "price": number})
    write_rows(folder / "photos" / "metadata.jsonl", lines)
    shown = [picture(names[n % 3], np.random.default_rng(9 + n)) for n in range(24)]
    with (folder / "photos.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "title", "kind"])
        for number, line in enumerate(lines):
            writer.writerow([f"photos/{line['file_name']}", line["text"], names[number % 3]])
    rows = [
        {"image": {"bytes": png(each.resize((8, 8))), "path": None}, "label": n % 3}
        | {"caption": f"a picture all in {names[n % 3]}"}
        for n, each in enumerate(shown)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "small.parquet")
    rows = [{**row, "image": {"bytes": png(each)}} for row, each in zip(rows, shown, strict=True)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "large.parquet")
    (folder / "few").mkdir()
    for number, each in enumerate(shown[:4]):
        each.save(folder / "few" / f"{number}.png")
    Image.fromarray(np.full((20, 24, 3), 90, np.uint8)).save(folder / "photo.png")
    mask = np.zeros((20, 24), np.uint8)
    mask[:10] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    (folder / "broken.jpg").write_text("no picture")


def told(folder: Path) -> None:
    rows = []
    for number in range(24):
        pixels = np.full((16, 16, 3), (number % 2) * 220, np.uint8)
        pixels[number % 16, :8] = number
        shade = ("dark", "bright")[number % 2]
        asked = ["how is the light?", "is it dark?"]
        answers = [shade, "no" if number % 2 else "yes"]
        held = {"picture": png(Image.fromarray(pixels)), "title": f"a {shade} field"}
        rows.append({**held, "questions": asked, "answers": answers})
    pq.write_table(pa.Table.from_pylist(rows), folder / "told.parquet")
    chats = []
    for number in range(3):
        parts = [{"type": "image", "image": f"in/few/{number}.png"}]
        parts += [{"type": "text", "text": "what colour is it?"}]
        chats.append({"messages": [{"role": "user", "content": parts}]})
    write_rows(folder / "chats.jsonl", chats)


def signals(folder: Path) -> None:
    (folder / "sounds").mkdir()
    with (folder / "sounds" / "rows.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file_name", "label"])
        for number in range(12):
            tone = 200 + 200 * (number % 2) + number
            heard = 0.5 * np.sin(2 * np.pi * tone * np.arange(200) / 2000)
            with wave.open(str(folder / "sounds" / f"{number}.wav"), "wb") as sound:
                sound.setnchannels(1)
                sound.setsampwidth(2)
                sound.setframerate(2000)
                sound.writeframes((heard * 32767).astype("<i2").tobytes())
            rows.writerow([f"{number}.wav", ["low", "high"][number % 2]])
    values = np.random.default_rng(0).integers(0, 256, (20, 1, 4, 4, 4), dtype=np.uint8)
    texts = np.array(["a thing", "a large thing"] * 10)
    np.savez(
        folder / "volumes.npz",
        signals=values,
        classes=np.array(["ball", "box"] * 10),
        captions=texts,
    )


def posts(folder: Path) -> None:
    (folder / "policy.yaml").write_text(POLICY)
    labels = "categories: {scorn: {labels: [blame], threshold: 0.5, action: flag}}\n"
    (folder / "policy-labels.yaml").write_text(labels)
    found = [{"text": f"I cook {dish} for {n}", "label": "food"} for n in (2, 9) for dish in DISHES]
    found += [{"text": f"The {x} costs {n} euros", "label": "money"} for n in (3, 8) for x in SUMS]
    places = ["town", "the hills", "the south", "the north", "Oslo", "Rome", "May", "June"]
    found += [
        {"text": f"{what} in {place} today", "label": "fine"}
        for what in ("It rains", "The sun shines")
        for place in places
    ]
    write_rows(folder / "posts.jsonl", found)
    items = [
        {"id": f"{colour}-{kind}", "text": f"{colour} {kind}", "kind": kind, "price": number}
        for number, (colour, kind) in enumerate(
            (c, k) for c in COLOURS for k in ("shirt", "shoes", "hat")
        )
    ]
    write_rows(folder / "items.jsonl", items)
    sales = [{"items": [f"{c}-shirt", f"{c}-hat"]} for c in COLOURS]
    write_rows(
        folder / "sales.jsonl", sales + [{"items": [f"{c}-hat", f"{c}-shoes"]} for c in COLOURS]
    )
