"""HTML of the page's parts. All that came from a user, a file or a model is escaped here: it is shown as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from PIL import Image
from torch import Tensor

from lit_eve.demo.web.engine import Ticket
from lit_eve.demo.web.pictures import Picture, data_url
from lit_eve.demo.web.sessions import Looked, Turn
from lit_eve.interpretation import overlay

WELCOME = '<p class="hint">Add an image, or take one of these examples, and ask.</p>'
NOTHING_CHOSEN = (
    '<p class="hint">Choose a word of an answer, by a click or by arrow keys and Enter: here you see where the model looked '
    "when it wrote it.</p>"
)
MAP_SIZE = 512  # pixels of a map's longest side


def history(turns: Sequence[Turn]) -> str:
    """Questions and their finished answers, whose words can be chosen."""
    if not turns:
        return WELCOME
    return "".join(
        _turn(turn, [_finished(index, name, ticket, len(turn.answers) > 1) for name, ticket in turn.answers.items()])
        for index, turn in enumerate(turns)
    )


def writing(turn: Turn, ahead: int) -> str:
    """A question whose answers are being written.

    Args:
        ahead: questions that are answered before.
    """
    wait = f"{ahead} question{'s' * (ahead > 1)} before this one" if ahead else "reading"
    parts = []
    for name, ticket in turn.answers.items():
        text = escape(ticket.text) + '<span class="cursor" aria-hidden="true"></span>'
        if not ticket.started or not ticket.text:
            text = f'<span class="wait">{wait} …</span>'
        parts.append(_answer(name, len(turn.answers) > 1, f'<p class="text" dir="auto">{text}</p>'))
    return _turn(turn, parts)


def thumbnails(pictures: Sequence[Picture]) -> str:
    """The images that come with the next question, each with a button that takes it away."""
    items = (
        f'<li><img src="{picture.preview}" alt="{escape(picture.name)}" title="{escape(picture.name)}">'
        f'<button type="button" data-index="{index}" aria-label="Remove {escape(picture.name)}">×</button></li>'
        for index, picture in enumerate(pictures)
    )
    return f'<ul aria-label="Images for the next question">{"".join(items)}</ul>' if pictures else ""


def examples(pictures: Sequence[tuple[Picture, str]]) -> str:
    """Images with a question each, as buttons."""
    return "".join(
        f'<button type="button" class="example" data-index="{index}"><img src="{picture.preview}" alt="">'
        f"<span>{escape(question)}</span></button>"
        for index, (picture, question) in enumerate(pictures)
    )


def message(text: str, is_error: bool = False) -> str:
    """A sentence for the user."""
    if not text:
        return ""
    kind, role = ("error", "alert") if is_error else ("note", "status")
    begins_with_word = text.split()[0].isalpha()  # and not with the name of a file
    return f'<p class="{kind}" role="{role}" dir="auto">{escape(text[0].upper() + text[1:] if begins_with_word else text)}</p>'


def attention(looked: Looked, seen: Sequence[Image.Image], layer: int, head: int) -> str:
    """Images under the attention of the word that is looked into.

    Args:
        looked: the word.
        seen: the images, as the model saw them.
        layer, head: from 1; 0: the mean over all.

    Raises:
        LitEveError: there is no such layer or head.
    """
    heats = looked.attention.of(layer or None, head or None)
    where = ", ".join(f"{what} {index}" if index else f"mean of {what}s" for what, index in (("layer", layer), ("head", head)))
    return _maps(looked, where, seen, heats, [f"{heat.sum():.1%} of the attention fell on this image" for heat in heats])


def causes(looked: Looked, seen: Sequence[Image.Image]) -> str:
    """Images under what the word that is looked into rests on."""
    captions = [
        f"without the brightest patch the word is {_times(heat.max().item())} times less likely"
        if heat.max() > 0
        else "without any one of its patches the word is as likely as before, or likelier"
        for heat in looked.causes
    ]
    return _maps(looked, "patches that it rests on", seen, [heat.clamp(min=0) for heat in looked.causes], captions)


def _times(nats: float) -> str:
    """What a fall of the log-probability means for the probability, in three digits."""
    if nats > math.log(1e6):
        return "over 1,000,000"
    factor = math.exp(nats)
    digits = max(0, 2 - math.floor(math.log10(factor)))
    return f"{float(f'{factor:.3g}'):,.{digits}f}"


def _maps(looked: Looked, what: str, seen: Sequence[Image.Image], heats: Sequence[Tensor], captions: Sequence[str]) -> str:
    figures = []
    for index, (image, heat, caption) in enumerate(zip(seen, heats, captions, strict=True), 1):
        rows, columns = heat.shape
        row, column = divmod(int(heat.argmax()), columns)
        alt = f"Image {index}: brightest in row {row + 1} of {rows}, column {column + 1} of {columns}"
        url = data_url(overlay(image, heat, size=MAP_SIZE, opacity=0.6))
        figures.append(f'<figure><img src="{url}" alt="{alt}"><figcaption>{caption}</figcaption></figure>')
    title = f"<b>{escape(looked.model)}</b>: <bdi>“{escape(looked.word)}”</bdi>, {what}"
    return f'<p class="title" role="status">{title}</p><div class="maps">{"".join(figures)}</div>'


def _turn(turn: Turn, answers: Sequence[str]) -> str:
    images = "".join(f'<img src="{picture.preview}" alt="{escape(picture.name)}">' for picture in turn.pictures)
    images = f'<div class="images">{images}</div>' if images else ""
    return (
        f'<section class="turn"><div class="question">{images}<p dir="auto">{escape(turn.question)}</p></div>'
        f'<div class="answers">{"".join(answers)}</div></section>'
    )


def _answer(name: str, named: bool, content: str, turn: int | None = None) -> str:
    place = "" if turn is None else f' data-turn="{turn}" data-model="{escape(name)}"'
    head = f"<h3>{escape(name)}</h3>" if named else ""
    return f'<article class="answer"{place}>{head}{content}</article>'


def _finished(turn: int, name: str, ticket: Ticket, named: bool) -> str:
    if ticket.error:
        return _answer(name, named, message(ticket.error, is_error=True))
    words = "".join(
        f'{escape(word.before)}<span class="word" role="button" aria-pressed="false" tabindex="{-1 if index else 0}" '
        f'data-word="{index}">{escape(word.text)}</span>'
        for index, word in enumerate(ticket.words)
    )
    rest = ticket.text[sum(len(word.before) + len(word.text) for word in ticket.words) :]
    words = words + escape(rest) or '<span class="wait">(an empty answer)</span>'
    facts = [f"{ticket.count} token{'s' * (ticket.count != 1)}", f"{ticket.tokens_per_second:.1f} tokens/s"]
    if ticket.sampling.temperature > 0:
        facts.append(f"seed {ticket.sampling.seed}")
    if ticket.note:
        facts.append(ticket.note)
    label = "Words of the answer: choose one to see where the model looked"
    text = f'<p class="text words" role="group" dir="auto" aria-label="{label}">{words}</p>'
    return _answer(name, named, f"{text}<footer>{escape(' · '.join(facts))}</footer>", turn)
