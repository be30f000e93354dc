"""The page of pictures with captions, or with questions and answers."""

import html.parser

import numpy as np
from PIL import Image

from bedstone.report.pages import (
    LONGEST_TEXT,
    Captioned,
    Line,
    Tile,
    write_caption_page,
    write_image_page,
)


class Read(html.parser.HTMLParser):
    """The texts of a page, its pictures, and whether its tags close."""

    def __init__(self, page):
        super().__init__()
        self.open, self.images, self.links, self.text = [], [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs))
        elif tag not in ("meta", "html"):
            self.open.append(tag)
            self.links += [dict(attrs)["href"]] if tag == "a" else []

    def handle_endtag(self, tag):
        if tag != "html":
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"] and data.strip():
            self.text += " ".join(data.split()) + " "


def picture(value):
    return np.full((30, 40, 3), value, dtype=np.uint8)


def test_captions_are_alternative_texts(tmp_path):
    shown = [
        Captioned(
            picture(9), "a.jpg", [Line("a dog runs", score="0.8"), Line("a cat", score="0.1")]
        ),
        Captioned(picture(99), "b.jpg", [Line("a red car")]),
    ]
    page = Read(write_caption_page(tmp_path / "page.html", "Captions", "Two.", shown).read_text())
    assert [image["alt"] for image in page.images] == ["a dog runs", "a red car"]
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.images)
    assert "0.8 a dog runs 0.1 a cat" in page.text
    assert "right" not in page.text and "wrong" not in page.text  # nobody knows
    assert not page.open


def test_right_and_wrong_are_told_in_words(tmp_path):
    lines = [
        Line("red", "What colour?", True, "red"),
        Line("no", "Is it so?", False, "yes"),
        Line("", "How many?", False),
    ]
    path = write_caption_page(
        tmp_path / "page.html", "Answers", "", [Captioned(picture(9), "c", lines)]
    )
    page = Read(path.read_text())
    assert "What colour? ✓ right: red Is it so? ✗ wrong: no expected: yes" in page.text
    assert "How many? ✗ wrong: nothing" in page.text
    assert page.images[0]["alt"] == "c"  # an answer alone says not what is seen


def test_what_cannot_be_shown_is_told(tmp_path):
    shown = [Captioned(None, "gone.jpg"), Captioned(b"no picture", "bad.png")]
    page = Read(write_caption_page(tmp_path / "page.html", "Captions", "", shown).read_text())
    assert page.text.count("can't be shown") == 2 and "gone.jpg" in page.text
    assert not page.images
    none = Read(write_caption_page(tmp_path / "none.html", "Captions", "", []).read_text())
    assert "There are no pictures" in none.text


def test_texts_are_text(tmp_path):
    wild = '<script>alert("1")</script>'
    line = Line(wild, wild, False, wild, wild)
    shown = [Captioned(picture(1), wild, [line, Line('" onload="x')])]
    page = write_caption_page(tmp_path / "p.html", wild, wild, shown, language="de").read_text()
    assert "<script" not in page and 'lang="de"' in page
    assert Read(page).images[0]["alt"] == '" onload="x'
    long = [Captioned(picture(1), "a", [Line("word " * 10_000)])]
    page = write_caption_page(tmp_path / "l.html", "a", "", long).read_text()
    assert page.count("word") <= 2 * LONGEST_TEXT // 5


def test_pictures_of_a_search_link_to_their_files(tmp_path):
    """Relative to the page, with odd names; one in memory or that is gone is no link."""
    file = tmp_path / "photos" / 'a b#"1".png'
    file.parent.mkdir()
    Image.fromarray(picture(9)).save(file)
    tiles = [
        Tile(file, "a"),
        Tile(picture(3), "b"),
        Tile(None, "c"),
        Tile(tmp_path / "no.png", "d"),
    ]
    (tmp_path / "pages").mkdir()
    page = write_image_page(tmp_path / "pages" / "page.html", "red", "4 pictures", tiles)
    read = Read(page.read_text())
    assert read.links == ["../photos/a%20b%23%221%22.png"]
    assert len(read.images) == 2 and read.open == []
    assert "min(11.5rem, 50% - .5rem)" in page.read_text()  # two columns on a phone
