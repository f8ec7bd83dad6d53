"""The parser of ``train.py``: what it does not take, it says in one sentence that names the setting."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from importlib import import_module
from typing import NoReturn

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser

from lit_eve.errors import ConfigError

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "NoneType": "null",
    "dict": "a mapping",
    "list": "a list",
    "tuple": "a list",
}


class RunParser(LightningArgumentParser):
    """LightningArgumentParser whose errors are a :class:`ConfigError` of one sentence, without the usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what the message means; parsers inside this one hand theirs up as they are."""
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        raise ConfigError(explain(message, list(_settings(parser)))) from ex


def explain(message: str, known: Iterable[str]) -> str:
    """The sentence in a message of jsonargparse, which lists every type that a value was tried as.

    Args:
        message: of jsonargparse or argparse.
        known: all settings there are ("model.lr"), to suggest one.
    """
    for kind in (_unknown_setting, _missing_setting, _unknown_class, _wrong_value):
        if said := kind(message, list(known)):
            return said
    lines = (line.strip(" -") for line in message.splitlines())
    return ". ".join(line.rstrip(".:") for line in lines if line).replace('Parser key "', '"')


def suggestion(name: str, known: Iterable[str]) -> str:
    """``; did you mean lr?``, or nothing where nothing is like it."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close else ""


def _unknown_setting(message: str, known: list[str]) -> str | None:
    found = re.search(
        r"Option '(?P<option>[^']+)' is not accepted|accept option '(?P<top>[^']+)'|unrecognized arguments: (?P<argument>.*)",
        message,
    )
    if found is None:
        return None
    word = found["option"] or found["top"] or found["argument"].split()[0]
    if found["argument"] and word[:1] == "-" != word[1:2]:
        return f"{word} is no setting: they begin with two dashes"
    if found["argument"] and not word.startswith("-"):
        return f"{word!r} is no setting; settings are written --key=value, with the value in quotes where it has blanks"
    name = word.lstrip("-").partition("=")[0].rstrip("+")
    keys, owner = _place(message[: found.start()])
    if owner is not None:
        known = [*_arguments(owner)]
    key = ".".join((*keys, name))
    if close := suggestion(key, [".".join((*keys, other)) for other in known]):
        return f"there is no setting {key}{close}"
    if owner is not None and not known:  # the base of all classes that could be chosen
        return f"no class of {'.'.join(keys)} is chosen, which {key} is a setting of: --config names a file that does"
    if owner is not None:
        return f"there is no setting {key}; {owner.rpartition('.')[2]} takes {', '.join(known)}"
    return f"there is no setting {key}; --help lists all there are"


def _missing_setting(message: str, known: list[str]) -> str | None:
    found = re.search(r"the following arguments are required: (.*)|argument -?-?(\S+): expected one argument", message)
    if found is None:
        return None
    if found[2]:
        return f"{found[2].rpartition('/')[2].lstrip('-')} needs a value"
    keys, owner = _place(message[: found.start()])
    if owner is None:
        return f"{found[1].strip().partition('.')[2]} is missing: --config names a file that has it"
    return f"{'.'.join(keys)}: {owner.rpartition('.')[2]} needs {found[1].strip()}"


def _unknown_class(message: str, known: list[str]) -> str | None:
    found = re.search(r"Expected a dot import path string: (\S+)", message)
    if found is None or "Literal" in message:
        return None
    keys, _ = _place(message[: found.start()])
    bases = re.findall(r"[\w.]+\.[A-Z]\w+", (re.search(r"Subtypes: (.*)", message) or ["", ""])[1])
    bases = [base for base in bases if not base.startswith(("typing.", "collections."))]  # a list of the classes is taken too
    names = sorted({name for base in bases for name in _subclasses(base)})
    close = suggestion(found[1], names)
    more = close or (f"; known: {', '.join(names)}" if names else "")
    return f"{'.'.join(keys)}: there is no class {found[1]!r}{more}"


def _wrong_value(message: str, known: list[str]) -> str | None:
    wanted = re.findall(r"Expected an? (.+?)(?:\. Got value: .*)?$", message, flags=re.MULTILINE)
    given = re.search(r"(?:Got value|Given value): (.*)", message)
    if not wanted or given is None:
        return None
    inner = re.search(r'Parser key "[^"]+":\s+Expected an? (.+?)\. Got value', message)
    place = inner.end() if inner else message.index("Expected a")
    keys, _ = _place(message[:place])
    if inner:
        wanted = [inner[1]]
    nested = re.match(r"NestedArg\(key='(?P<key>.*?)', val='?(?P<value>.*?)'?\)", given[1])
    if nested and not inner:
        keys.append(nested["key"])
    kinds, choices = [], []
    for kind in wanted:
        if kind.startswith("typing.Literal"):
            choices += re.findall(r"[^\s',\[\]]+", kind.partition("[")[2])
        elif match := re.fullmatch(r"<class '([\w.]+)'>", kind):
            kinds.append(_KINDS.get(match[1], match[1].rpartition(".")[2]))
    if choices:
        kinds.insert(0, f"one of {', '.join(dict.fromkeys(choices))}")
    if not kinds:
        return None
    value = nested["value"] if nested else given[1]
    return f"{'.'.join(keys)} must be {' or '.join(dict.fromkeys(kinds))}, got {value!r}{suggestion(value, choices)}"


def _place(text: str) -> tuple[list[str], str | None]:
    """The keys and the class that the end of a message is about."""
    keys = [key for key in re.findall(r'Parser key "([^"]+)"', text) if key != "config"]
    owners = re.findall(r"Problem with given class_path '([^']+)'", text)
    return keys, owners[-1] if owners else None


def _settings(parser: ArgumentParser) -> Iterator[str]:
    return (action.dest for action in parser._actions if action.option_strings)


def _arguments(class_path: str) -> Iterator[str]:
    """What a class takes, with what it hands on to the classes it is derived from."""
    module, _, name = class_path.rpartition(".")
    parser = ArgumentParser(add_help=False)
    parser.add_class_arguments(getattr(import_module(module), name), as_group=False)
    return _settings(parser)


def _subclasses(class_path: str) -> Iterator[str]:
    """Names of the classes that are derived from one, as far as their modules are imported."""
    module, _, name = class_path.rpartition(".")
    waiting = [getattr(import_module(module), name)]
    while waiting:
        waiting += (below := waiting.pop().__subclasses__())
        yield from (sub.__name__ for sub in below if not sub.__name__.startswith("_"))
