"""What the language model reads before it ever sees an image: a map where an image would be, then words about it.

Five kinds of documents, each a lesson of its own:

    caption     all things in reading order, as stages 1 and 2 will ask for them
    facts       what belongs together, in any order, twice: every word asks for another attribute of the same thing, and the
                second list says so again to a reader who missed it
    counts      how many there are of a colour, shape or size, or of a colour and shape, one after the other
    stop        a map that stops behind a thing, and where that is, asked for one token later: so the thing's own token must
                know its place
    chat        questions and answers
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from lit_eve.nano.world.language import USER, caption, chat, facts, glyph_map, glyph_rows
from lit_eve.nano.world.prompts import Turn
from lit_eve.nano.world.questions import PLURALS, counts_of, pairs_of
from lit_eve.nano.world.scenes import Scene

ZEROS = 0.5  # share of the attributes of no thing that a list of counts names
SHARES = {"chat": 0.52, "caption": 0.13, "facts": 0.18, "counts": 0.09, "stop": 0.08}
"""Of the documents, by kind."""


def caption_document(scene: Scene, rng: random.Random) -> str:
    """The map and a caption."""
    return f"{glyph_map(scene)} {caption(scene, rng)}\n"


def facts_document(scene: Scene, rng: random.Random) -> str:
    """The map and its facts, twice, each time in another order."""
    return f"{glyph_map(scene)}\n{facts(scene, rng)}\n{facts(scene, rng)}\n"


def counts_document(scene: Scene, rng: random.Random) -> str:
    """The map and how many there are: "red shapes 2; crosses 0; shapes 3; red circles 1; ..."."""
    counts = [*counts_of(scene.things), ("shapes", len(scene.things))]
    counts += [(f"{colour} {PLURALS[shape]}", count) for colour, shape, count in pairs_of(scene.things)]
    phrases = [f"{name} {count}" for name, count in counts if count or rng.random() < ZEROS]
    rng.shuffle(phrases)
    return f"{glyph_map(scene)}\n{'; '.join(phrases)}\n"


def stop_document(scene: Scene, rng: random.Random) -> str:
    """The map up to one of the things, and the place of that thing."""
    thing = rng.choice(scene.things)
    rows = glyph_rows(scene)[: thing.row + 1]
    rows[-1] = rows[-1][: thing.column + 1]
    start = f"{USER} " if rng.random() < 0.5 else ""  # where a map begins in a chat
    return f"{start}{'; '.join(map(' '.join, rows))}\n{scene.place(thing)}\n"


KINDS: dict[str, Callable[[Scene, random.Random], str]] = {
    "caption": caption_document,
    "facts": facts_document,
    "counts": counts_document,
    "stop": stop_document,
}
"""Kinds of documents, but for chats, which need questions."""


def document(scene: Scene, turns: Sequence[Turn], rng: random.Random, shares: Mapping[str, float] = SHARES) -> tuple[str, str]:
    """A chat where there are turns, otherwise a document of a kind that is drawn by its share.

    Returns:
        Its kind and its text.
    """
    if turns:
        return "chat", chat(glyph_map(scene), turns)
    kind = rng.choices(list(KINDS), [shares.get(kind, 0.0) for kind in KINDS])[0]
    return kind, KINDS[kind](scene, rng)
