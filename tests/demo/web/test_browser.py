"""The page in a real browser. Needs Gradio, Playwright and Chromium; what is missing is told by the skip."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from lit_eve.demo.web.pictures import Limits
from lit_eve.demo.web.server import serve_page
from lit_eve.demo.web.sessions import Sessions
from tests.demo.web.asking import QUESTIONS, expected, free_port
from tests.demo.web.browser import Page
from tests.demo.web.files import animation, bomb, encoded
from tests.tiny_model import make_tiny, scene_image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
pytest.importorskip("gradio", reason="the web demo's page needs Gradio: requirements-demo.txt")

LIMITS = Limits(bytes=200_000, pixels=1_000_000, pictures=4)


class Demo(NamedTuple):
    url: str
    sessions: Sessions


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    """Two models of random weights, no faster than larger ones."""
    sessions, models = Sessions(), {"one": make_tiny(), "two": make_tiny(seed=1)}
    for model, _ in models.values():
        model.register_forward_pre_hook(lambda *_: time.sleep(0.01))
    examples = [(scene_image(seed), QUESTIONS[seed]) for seed in range(2)]
    with serve_page(models, examples, port=free_port(), limits=LIMITS, sessions=sessions) as url:
        yield Demo(url, sessions)


@pytest.fixture
def page(pages, demo: Demo) -> Page:
    """The page as a new user sees it, with short answers."""
    page = pages(demo.url)
    page.set("How answers are drawn", "Longest answer, in tokens", 12)
    return page


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    scene_image(2).save(path)
    return path


def test_a_user_asks_and_looks(page: Page, pages, demo: Demo, scene: Path) -> None:
    page.upload(scene)
    page.ask("what is red?")
    assert page.answers() == [expected("what is red?", 2)]
    assert re.search(r"12 tokens · \d+\.\d tokens/s", page.text("#history"))

    first = page.choose_word(0)
    assert page.choose_word(1) != first
    assert "“" in page.text("#maps") and "of the attention fell on this image" in page.text("#maps")
    by_mean = page.map()
    page.focus("#layer input[type=range]")
    page.keyboard.press("ArrowRight")
    page.wait_for("the map of layer 1", lambda: "layer 1" in page.text("#maps") and page.map() != by_mean)
    page.focus("#head input[type=range]")
    page.keyboard.press("End")
    page.wait_for("the map of the last head", lambda: "layer 1, head 4" in page.text("#maps"))

    page.get_by_label("Causal: patches blanked one by one").check()
    page.wait_for("the causal map", lambda: "patches that it rests on" in page.text("#maps"))
    page.wait_for("sliders at rest", lambda: page.locator("#layer input[type=range]").is_disabled())
    page.get_by_label("Attention", exact=True).check()
    page.wait_for("the attention", lambda: "layer 1, head 4" in page.text("#maps"))

    other = pages(demo.url)  # a second user
    assert "what is red?" not in other.content() and not other.answers()
    other.ask(QUESTIONS[1], wait=False)
    other.wait_for("an answer", lambda: other.answers())
    assert len(page.answers()) == 1

    page.ask(QUESTIONS[1])
    assert len(page.answers()) == 2
    page.click_button("Clear")
    page.wait_for("an empty conversation", lambda: not page.answers() and "Choose a word" in page.text("#maps"))
    assert other.answers()
    assert page.errors == other.errors == []


def test_an_answer_streams_in_and_can_be_stopped_retried_and_edited(page: Page, scene: Path) -> None:
    page.set("How answers are drawn", "Longest answer, in tokens", 400)
    page.upload(scene)
    page.ask("what is red?", wait=False)
    seen = set()
    page.wait_for("a growing answer", lambda: seen.add(len(page.text("#live .text"))) or len(seen) > 3)
    page.click_button("Stop")
    page.wait_for("the stopped answer", lambda: page.answers())
    assert "stopped" in page.text("#history")

    page.set("How answers are drawn", "Longest answer, in tokens", 12)
    page.click_button("Retry")
    page.wait_for("another answer", lambda: page.answers() == [expected("what is red?", 2)])
    page.click_button("Edit")
    page.wait_for("the question", lambda: page.input_value("#question textarea") == "what is red?" and not page.answers())
    assert page.locator("#pictures img").count() == 1
    page.ask(QUESTIONS[1])
    assert page.answers() == [expected(QUESTIONS[1], 2)] and page.errors == []


def test_two_models_side_by_side(page: Page) -> None:
    page.get_by_label("Compare with").click()
    page.get_by_role("option", name="two").click()
    page.locator(".example").nth(1).click()
    page.wait_for("the example", lambda: page.locator("#pictures img").count() == 1)
    page.ask(None)
    assert page.answers()[0] == expected(QUESTIONS[1], 1) != page.answers()[1]
    boxes = [page.locator("#history .answer").nth(i).bounding_box() for i in range(2)]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]
    page.locator("#history .answer").nth(1).locator(".word").first.click()
    page.wait_for("the second model's map", lambda: page.text("#maps").startswith("two"))
    page.get_by_label("Model", exact=True).click()
    page.get_by_role("option", name="two").click()
    page.ask(QUESTIONS[0])
    assert len(page.answers()) == 3 and page.errors == []


def test_with_the_keyboard_alone(page: Page, scene: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.tab_to("Add images")
        page.keyboard.press("Enter")
    chooser.value.set_files(scene)
    page.wait_for("the image", lambda: page.locator("#pictures img").count() == 1)
    page.focus("body")
    page.tab_to("Question", "textarea")
    page.keyboard.type(QUESTIONS[0])
    page.keyboard.press("Enter")
    page.wait_for("the answer", lambda: page.answers() == [expected(QUESTIONS[0], 2)])
    page.tab_to(None, ".word")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    page.keyboard.press("Enter")
    page.wait_for("the map", lambda: page.locator("#maps img").count() == 1)
    first = page.map()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    page.wait_for("the next word's map", lambda: page.map() != first)
    assert page.evaluate("document.activeElement.dataset.word") == "1" and outline != "none"
    page.tab_to("Clear")
    page.keyboard.press("Enter")
    page.wait_for("an empty conversation", lambda: not page.answers())
    assert page.errors == []


def test_on_a_narrow_screen(page: Page, scene: Path) -> None:
    page.set_viewport_size({"width": 375, "height": 700})
    page.upload(scene)
    page.ask(QUESTIONS[0] + " " + "x" * 300)
    page.choose_word(0)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    for element in page.locator("#columns button:visible").all():
        box = element.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 375
    page.wait_for(
        "the map in sight", lambda: page.evaluate("document.querySelector('#maps').getBoundingClientRect().top") < 700
    )
    assert page.errors == []


def test_pasting_dropping_and_the_camera(page: Page) -> None:
    send = """async (kind) => {
        const canvas = document.createElement("canvas");
        canvas.width = canvas.height = 32;
        const blob = await new Promise((done) => canvas.toBlob(done));
        const data = new DataTransfer();
        data.items.add(new File([blob], kind + ".png", { type: "image/png" }));
        const event = kind === "paste" ? new ClipboardEvent(kind, { clipboardData: data, bubbles: true, cancelable: true })
                                       : new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true });
        document.querySelector("#question textarea").dispatchEvent(event);
    }"""
    for number, kind in enumerate(("paste", "drop"), 1):
        page.evaluate(send, kind)
        page.wait_for(f"the image of a {kind}", lambda number=number: page.locator("#pictures img").count() == number)
    page.click_button("Camera")
    page.get_by_role("button", name="Take the picture").click()
    page.wait_for("the picture taken", lambda: page.locator("#pictures img").count() == 3)
    page.get_by_role("button", name="Remove drop.png").click()
    page.wait_for("two images", lambda: page.locator("#pictures img").count() == 2)
    assert page.locator("video").evaluate("video => video.srcObject") is None and page.errors == []


HOSTILE = {
    "notes.png": (b"this is a text", "notes.png: the image cannot be opened: it is no image of a known kind"),
    "bomb.png": (bomb(30_000, 30_000), "bomb.png: the image"),
    "wide.png": (bomb(2000, 2000), "2000 x 2000 pixels, more than the limit of 1000000"),
    "evil.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'><script>window.evil=1</script></svg>", "evil.svg: the image cannot"),
    "large.png": (b"x" * 300_000, "large.png: the file has 300000 bytes, more than the limit of 200000"),
    "..%2F..%2Fetc%2Fpasswd.png": (b"root", "cannot be opened"),
    "<img src=x onerror=window.evil=1>.png": (b"x", "<img src=x onerror=window.evil=1>.png: the image cannot be opened"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_a_sentence(page: Page, name: str) -> None:
    content, sentence = HOSTILE[name]
    page.set_input_files("#adder input", [{"name": name, "mimeType": "image/png", "buffer": content}])
    page.wait_for("a sentence", lambda: sentence in page.text("#status") + page.text("#adder .told"))
    page.check_unharmed()
    page.ask(QUESTIONS[0])
    assert page.answers() == [expected(QUESTIONS[0])]


def test_an_animation_and_too_many_images(page: Page) -> None:
    page.set_input_files("#adder input", [{"name": "moves.gif", "mimeType": "image/gif", "buffer": animation()}])
    page.wait_for("a sentence", lambda: "moves.gif has several pictures: the model sees the first." in page.text("#status"))
    small = encoded(Image.new("RGB", (20, 20)))
    files = [{"name": f"{number}.png", "mimeType": "image/png", "buffer": small} for number in range(10)]
    page.set_input_files("#adder input", files)
    page.wait_for("a sentence", lambda: "is left out: a question takes at most 4 images" in page.text("#status"))
    assert page.locator("#pictures img").count() == 4
    page.check_unharmed()


def test_images_chosen_together_keep_their_order_and_nothing_said_about_them_is_lost(page: Page) -> None:
    large = encoded(Image.effect_noise((400, 400), 80))  # takes longer than those behind it
    small = encoded(Image.new("RGB", (20, 20)))
    contents = {"a.png": large, "text.png": b"a text", "b.png": small, "moves.gif": animation(), "c.png": small, "d.png": small}
    contents |= {"large 1.png": b"x" * 300_000, "large 2.png": b"x" * 300_000}
    files = [{"name": name, "mimeType": "image/png", "buffer": content} for name, content in contents.items()]
    page.set_input_files("#adder input", files)
    page.wait_for("the last sentence", lambda: "d.png is left out" in page.text("#status"))
    shown = [image.get_attribute("alt") for image in page.locator("#pictures img").all()]
    assert shown == ["a.png", "b.png", "moves.gif", "c.png"]
    assert "text.png: the image cannot be opened" in page.text("#status") and "moves.gif has several" in page.text("#status")
    page.wait_for("the last refusal", lambda: all(f"large {n}.png: the file has" in page.text("#adder .told") for n in (1, 2)))
    page.check_unharmed()


def test_the_map_is_in_sight_however_long_the_conversation(page: Page, scene: Path) -> None:
    page.set_viewport_size({"width": 1280, "height": 600})
    page.upload(scene)
    for _ in range(4):
        page.ask("red\n" * 20)
    words = page.locator("#history .answer").last.locator(".word")
    words.last.click()
    page.wait_for("the map", lambda: page.locator("#maps img").count())
    assert page.evaluate("scrollY") > 600
    box = page.locator("#maps img").bounding_box()
    assert box["y"] >= 0 and box["y"] + box["height"] <= 600
    page.get_by_label("range slider for Head").focus()  # the panel scrolls by itself to what does not fit
    box = page.get_by_label("range slider for Head").bounding_box()
    assert page.evaluate("scrollY") > 600 and 0 <= box["y"] <= 600


def test_numbers_that_the_page_does_not_offer(page: Page, scene: Path, capfd: pytest.CaptureFixture) -> None:
    page.upload(scene)
    page.ask(QUESTIONS[0])
    page.choose_word(0)
    for label, number, sentence in (
        ("number input for Layer", "9", "There is no layer 9: this model has 3"),
        ("number input for Head", "-1", "There is no head -1: this model has 4"),
        ("Seed", "1e30", "The seed must be from -1 to 2147483647, got 1"),
        ("number input for Temperature", "7", "The temperature must be from 0 to 2, got 7"),
    ):
        box = page.get_by_label(label)
        box.fill(number)
        box.press("Enter")
        if "Layer" not in label and "Head" not in label:
            page.evaluate("document.getElementById('retry').click()")  # the box keeps the focus, and so its number
        page.wait_for("a sentence", lambda sentence=sentence: sentence in page.text("#status"))
        box.press("Tab")
    assert page.answers() == [expected(QUESTIONS[0], 2)] and page.errors == []
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_what_the_box_is_for_can_be_read(page: Page, theme: str) -> None:
    page.evaluate("theme => document.body.classList.toggle('dark', theme === 'dark')", theme)
    styles = """box => [getComputedStyle(box, "::placeholder").color, getComputedStyle(box).backgroundColor]"""
    page.wait_for_timeout(500)  # colours fade
    colours = page.locator("#question textarea").evaluate(styles)
    light, dark = sorted((_luminance(colour) for colour in colours), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5, colours  # WCAG 2.1, 1.4.3


def _luminance(colour: str) -> float:
    """The relative luminance (WCAG 2.1) of a colour of CSS, ``rgb(R, G, B)``."""
    channels = [int(number) / 255 for number in re.findall(r"\d+", colour)[:3]]
    linear = [one / 12.92 if one <= 0.03928 else ((one + 0.055) / 1.055) ** 2.4 for one in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


TEXTS = {
    "html": "<img src=x onerror=window.evil=1><script>window.evil=1</script>",
    "templates": "${window.evil=1} {{value}} `${(window.evil=1)}` </p></section>",
    "right to left": "ما هذا؟ \u202eabc",
    "emoji": "🙂👩‍👩‍👧 how many?",
}


@pytest.mark.parametrize("kind", TEXTS)
def test_questions_are_shown_as_they_are(page: Page, kind: str) -> None:
    page.ask(TEXTS[kind])
    assert page.text("#history .question p") == TEXTS[kind] and len(page.answers()) == 1
    page.check_unharmed()


def test_ten_megabytes_of_text_and_no_text(page: Page) -> None:
    page.evaluate(
        """() => { const box = document.querySelector("#question textarea"); box.value = "a".repeat(10_000_000);
                   box.dispatchEvent(new Event("input", { bubbles: true })); }"""
    )
    page.click_button("Ask")
    page.wait_for("a sentence", lambda: "has 10,000,000 characters, more than the limit of 100,000" in page.text("#status"), 60)
    page.ask("red " * 3000, wait=False)
    page.wait_for("a sentence", lambda: "but the decoder reads 512: clear it" in page.text("#status"))
    page.fill("#question textarea", "")
    page.click_button("Ask")
    page.wait_for("a sentence", lambda: "The question is empty" in page.text("#status"))
    page.check_unharmed()


def test_buttons_without_a_conversation(page: Page) -> None:
    for button, sentence in (
        ("Retry", "Nothing was asked yet"),
        ("Edit", "Nothing was asked yet"),
        ("Stop", "No answer is being"),
    ):
        page.click_button(button)
        page.wait_for("a sentence", lambda sentence=sentence: sentence in page.text("#status"))
    page.ask(QUESTIONS[0])
    assert "No image was shown" in page.text("#status")
    page.locator(".word").first.click()
    page.wait_for("a sentence", lambda: "There is no image to look at" in page.text("#status"))
    page.check_unharmed()


def test_a_word_that_was_not_generated(page: Page, scene: Path) -> None:
    page.upload(scene)
    page.ask(QUESTIONS[0])
    page.locator(".word").first.evaluate("word => { word.dataset.word = 99; word.click(); }")
    page.wait_for("a sentence", lambda: "This word was not generated" in page.text("#status"))
    page.check_unharmed()


def test_who_closes_the_page_is_forgotten(pages, demo: Demo, scene: Path) -> None:
    before = set(demo.sessions._sessions)
    page = pages(demo.url)
    page.upload(scene)
    page.ask(QUESTIONS[0])
    (name,) = [one for one in demo.sessions._sessions if one not in before and demo.sessions._sessions[one].turns]
    page.close()
    page.wait_for("the end of the session", lambda: name not in demo.sessions._sessions, 30)


def test_nothing_but_the_page_is_served(demo: Demo) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for path in ("gradio_api/file=/etc/passwd", "gradio_api/upload", "gradio_api/info", "file=README.md", "proxy=http://a.b"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            opener.open(f"{demo.url}/{path}")
    config = json.loads(opener.open(f"{demo.url}/config").read())
    assert not config["analytics_enabled"] and all(one["api_visibility"] == "private" for one in config["dependencies"])
