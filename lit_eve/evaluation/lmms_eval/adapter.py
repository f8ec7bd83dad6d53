"""The classes that lmms-eval runs.

lmms-eval has two protocols. In the newer one, *chat*, a task gives whole messages with images among their parts
(``doc_to_messages``); :class:`LitEveChat` takes it, and ``--model lit_eve`` runs it. In the older one, *simple*, a task gives a
text and a list of images; :class:`LitEveSimple` takes it, and ``--force_simple`` runs it. Where a task has no messages of its
own, lmms-eval makes them from text and images, and both give the same prompt. Only *simple* knows multiple choice by
likelihood (``output_type: multiple_choice``) and few-shot texts in front of questions with images.

On several devices, started by ``accelerate launch -m lmms_eval ...``, every process has a whole model and its share of the
documents, which lmms-eval deals out.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import torch
from rich.progress import Progress

from lit_eve.errors import ConfigError
from lit_eve.evaluation.generation import Query, answer_all
from lit_eve.evaluation.likelihood import score_answers
from lit_eve.evaluation.lmms_eval.requests import chat_query, cut, generation_arguments, simple_query
from lit_eve.models import load

try:
    from accelerate import Accelerator
    from lmms_eval.api.instance import GenerationResult, Instance
    from lmms_eval.api.model import lmms
except ImportError as error:
    raise ImportError(
        f"lit_eve's model for lmms-eval needs lmms-eval 0.7.3 or newer, see requirements-lmms-eval.txt: {error}"
    ) from error

Rounds: TypeAlias = Generator[Query, str, Any]
"""Asks, is sent the answer, asks again, and returns what lmms-eval is given."""

WINDOW = 16
"""Batches whose images are held in memory, and whose prompts are sorted by length, at a time."""


class LitEve(lmms):
    """A model of lit_eve behind the interface of lmms-eval; what both protocols share.

    Args:
        pretrained: what :func:`lit_eve.load` takes: a run folder, a checkpoint, a transformers folder, an official EVE, a name
            on the hub.
        device: "cuda:1", "cpu"; by default the GPU, if there is one. Several processes choose theirs themselves.
        dtype: of the weights: "bfloat16", "float32"; "auto": as saved.
        batch_size: prompts per call of ``generate``.
        max_batch_size: given by lmms-eval for its ``--batch_size auto``; not used.
        attn_implementation: "sdpa", "flash_attention_2"...
        template: how conversations are written, instead of the processor's own.
        tokenizer: folder or hub name, for a checkpoint that holds no tokenizer.
        image_size: 672 or 1344 (EVE v2: 800 or 1600), for an official checkpoint that does not tell it.

    Raises:
        ConfigError: the batch size is no positive number, or the template is unknown.
        CheckpointError: there is no model in ``pretrained``.
    """

    def __init__(
        self,
        pretrained: str | Path,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        attn_implementation: str | None = None,
        template: str | Mapping[str, Any] | None = None,
        tokenizer: str | None = None,
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ConfigError(f"batch_size must be a positive number, got {batch_size!r}")
        self.batch_size = int(batch_size)
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        own = device is None or self._world_size > 1
        self.device = self.accelerator.device if own else torch.device(device)
        kwargs = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
        self.model, self.processor = load(
            str(pretrained), tokenizer=tokenizer, image_size=image_size, dtype=dtype, device=self.device, **kwargs
        )
        self.processor.template_of(template)
        self.template = template

    # ---- what lmms-eval calls

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """One answer per request, cut at the task's stop strings."""
        return self._generate(requests, self._one_round)

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """The answers of all rounds; after each, the task says what is asked next. Rounds of many documents run together."""
        return self._generate(requests, self._many_rounds)

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """How likely the continuation of each request is, and whether greedy decoding would write it.

        A pair as in ``lmms.loglikelihood``, with two turns that lmms-eval 0.7 asks for. Where a task has choices, the
        evaluator takes the *smallest* number (its own models return losses), so that the negative log-likelihood is given;
        only ``output_type: loglikelihood``, whose target is a function, is given the log-likelihood. And the evaluator
        makes a text of a bare pair, but takes any value out of a ``GenerationResult``.
        """
        results: list[Any] = [None] * len(requests)
        for window in self._windows([range(len(requests))], "scoring"):
            queries, targets, signs = [], [], []
            for index in window:
                target = requests[index].args[1]
                queries.append(self._first(requests[index]))
                targets.append(target(self._document(requests[index])) if callable(target) else target)
                signs.append(1 if callable(target) else -1)
            scores = score_answers(
                self.model,
                self.processor,
                queries,
                targets,
                batch_size=self.batch_size,
                template=self.template,
                progress=None,
            )
            for index, sign, score in zip(window, signs, scores, strict=True):
                results[index] = GenerationResult((sign * score.log_prob, score.is_greedy))
        return results

    # ---- what the protocols differ in

    def _first(self, request: Instance) -> Query:
        """The only question of a request, or that of its first round."""
        raise NotImplementedError

    def _next(self, request: Instance, state: Mapping[str, Any]) -> tuple[Query | None, list[str] | None, Any]:
        """What follows after some rounds: the next question (None: it was the last round), the answers so far as the task
        wants them, and what the task wants to be given the next time.

        Args:
            state: ``round_idx``, ``previous_output`` and ``previous_round_info``, as lmms-eval's tasks take them.
        """
        raise NotImplementedError

    # ---- parts

    def _one_round(self, request: Instance) -> Rounds:
        return (yield self._first(request))

    def _many_rounds(self, request: Instance) -> Rounds:
        query, answers, info = self._first(request), [], None
        for round_idx in count(1):
            answers.append((yield query))
            state = {"round_idx": round_idx, "previous_output": list(answers), "previous_round_info": info}
            query, changed, info = self._next(request, state)
            answers = answers if changed is None else list(changed)
            if query is None:
                return answers

    def _generate(self, requests: Sequence[Instance], rounds: Callable[[Instance], Rounds]) -> list[Any]:
        """Run the rounds of all requests; those of equal ``generation_kwargs`` share batches."""
        groups = defaultdict(list)
        for index, request in enumerate(requests):
            groups[json.dumps(_settings(request), sort_keys=True, default=str)].append(index)
        results: list[Any] = [None] * len(requests)
        for window in self._windows(groups.values(), "answering"):
            settings = _settings(requests[window[0]])
            talks = {index: rounds(requests[index]) for index in window}
            queries = {index: next(talk) for index, talk in talks.items()}
            while queries:
                answers = self._answer(list(queries.values()), settings)
                indices, queries = list(queries), {}
                for index, answer in zip(indices, answers, strict=True):
                    try:
                        queries[index] = talks[index].send(answer)
                    except StopIteration as end:
                        results[index] = end.value
        return results

    def _answer(self, queries: Sequence[Query], settings: Mapping[str, Any]) -> list[str]:
        until, arguments = generation_arguments(settings)
        answers = answer_all(
            self.model,
            self.processor,
            queries,
            batch_size=self.batch_size,
            template=self.template,
            progress=None,
            **arguments,
        )
        return [cut(answer, until) for answer in answers]

    def _windows(self, groups: Sequence[Sequence[int]], title: str) -> Iterator[Sequence[int]]:
        """Runs of indices of the same group, with a progress bar in the first process."""
        size = WINDOW * self.batch_size
        with Progress(disable=self.rank != 0) as progress:
            bar = progress.add_task(title, total=sum(map(len, groups)))
            for group in groups:
                for start in range(0, len(group), size):
                    window = group[start : start + size]
                    yield window
                    progress.advance(bar, len(window))

    def _document(self, request: Instance) -> Any:
        doc_id, task, split = request.args[-3:]
        return self.task_dict[task][split][doc_id]


class LitEveSimple(LitEve):
    """The older protocol: a text and a list of images."""

    is_simple = True

    def _first(self, request: Instance) -> Query:
        visuals = request.args[2](self._document(request))
        return simple_query(request.args[0], visuals, _name(request))

    def _next(self, request: Instance, state: Mapping[str, Any]) -> tuple[Query | None, list[str] | None, Any]:
        visuals, text, is_last, answers, info = request.args[3](self._document(request), **state)
        return None if is_last else simple_query(text, visuals, _name(request)), answers, info


class LitEveChat(LitEve):
    """The newer protocol: messages with images among their parts."""

    is_simple = False

    def _first(self, request: Instance) -> Query:
        return chat_query(request.args[1](self._document(request)), _name(request))

    def _next(self, request: Instance, state: Mapping[str, Any]) -> tuple[Query | None, list[str] | None, Any]:
        reply = request.args[1](self._document(request), **state)
        if not isinstance(reply, tuple):  # the task has messages for one round only
            return None, None, None
        messages, is_last, answers, info = reply
        return None if is_last else chat_query(messages, _name(request)), answers, info


def _settings(request: Instance) -> Mapping[str, Any]:
    """The ``generation_kwargs``: the one mapping among the arguments, wherever the protocol puts it."""
    return next(argument for argument in request.args if isinstance(argument, Mapping))


def _name(request: Instance) -> str:
    doc_id, task, _ = request.args[-3:]
    return f"{task}, document {doc_id}"
