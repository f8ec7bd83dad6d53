"""How VQAv2, VizWiz and TextVQA make answers alike before they compare them, fault for fault as their official scorers do.

Sources: vqaEval.py of GT-Vision-Lab/VQA and of the VizWiz API, and eve/eval/m4c_evaluator.py (EvalAI's processor). The scorers
combine the functions in different ways, which their metrics say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
FULL_STOPS = 32  # the official code passes re.UNICODE, which is 32, where the number of replacements belongs
NUMBERS = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"))
}
ARTICLES = ("a", "an", "the")
WITH_APOSTROPHES = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's I'd've I'm I've isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
    needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
    would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""


def _contractions() -> dict[str, str]:
    """Each word is found without one of its apostrophes, whichever it is. Three entries follow a rule of their own."""
    table = {"let's": "let's", "she's": "she's", "somebody'd": "somebodyd"}
    for word in WITH_APOSTROPHES.split():
        table |= {word[:place] + word[place + 1 :]: word for place, letter in enumerate(word) if letter == "'"}
    return table


CONTRACTIONS: Mapping[str, str] = _contractions()
"""Words that lack an apostrophe (or have a wrong one), and how they are written."""

_STRAIGHT = ("ain't", "aren't", "can't", "could've", "couldn't", "we've", "where's", "who've", "couldn'tve", "hadn'tve")
VIZWIZ_CONTRACTIONS: Mapping[str, str] = {
    key if key in _STRAIGHT else key.replace("'", "’"): word if word in _STRAIGHT else word.replace("'", "’")
    for key, word in CONTRACTIONS.items()
}
"""The VizWiz API's table: the same with curly apostrophes, which ten of its words lack."""


def one_line(text: str) -> str:
    """Line breaks and tabs as blanks; no white space around."""
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 16)
def strip_punctuation(text: str, flags: re.RegexFlag = re.NOFLAG, commas: str = ",") -> str:
    """Text without punctuation.

    A mark is deleted everywhere if it stands beside a blank anywhere, or if there is a comma between digits; otherwise it
    becomes a blank. A full stop is deleted unless a digit follows, but no more than 32 of them.

    Args:
        text: an answer.
        flags: ``re.ASCII`` where only 0 to 9 are digits: in scorers that run under Python 2.
        commas: what may stand between digits; lmms-eval takes several in a row (``,+``).
    """
    numbers = re.search(rf"\d{commas}\d", text, flags)
    marks = {mark: "" if numbers or f"{mark} " in text or f" {mark}" in text else " " for mark in PUNCTUATION if mark in text}
    return re.sub(r"\.(?!\d)", "", text.translate(str.maketrans(marks)), count=FULL_STOPS, flags=flags)


@lru_cache(maxsize=1 << 16)
def plain_words(text: str, curly: bool = False) -> str:
    """Lower-case words with single blanks: small numbers as digits, no articles, apostrophes where they belong.

    Args:
        text: an answer.
        curly: use the VizWiz API's table of contractions.
    """
    contractions = VIZWIZ_CONTRACTIONS if curly else CONTRACTIONS
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(contractions.get(word, word) for word in words if word not in ARTICLES)


@lru_cache(maxsize=1 << 16)
def evalai_answer(text: str) -> str:
    """An answer as EVE hands it in, and as TextVQA compares it: EvalAI's processor.

    Commas and question marks are gone before the rules of :func:`strip_punctuation` see them, and ``'s`` becomes a word.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return plain_words(strip_punctuation(one_line(text)))
