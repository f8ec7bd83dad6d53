"""From a sample to the model's numbers, and the length of a sample without them.

Legend: T tokens, N images, P patches of all images, p side of a patch, C side of the teacher's square.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from lit_eve.errors import ConfigError, SampleError
from lit_eve.processing.around_images import AroundImages
from lit_eve.processing.geometries import ImageGeometry
from lit_eve.processing.images import check_size, image_size, load_image, patchify
from lit_eve.processing.inputs import image_names
from lit_eve.processing.sample import Sample, check_answers, naming, parse_conversation
from lit_eve.processing.teacher_grid import TeacherGrid
from lit_eve.processing.templates import Segment, Template, templates
from lit_eve.processing.tokenize import TextEncoder, UnknownWords

TemplateName = str | Mapping[str, Any]
Conversation = Sequence[Mapping[str, Any]]


class AnswerEnd(NamedTuple):
    """What ends an answer: a special token, or else a text."""

    token: int | None
    text: str | None


class SampleEncoder:
    """What training needs of :class:`~lit_eve.processing.EveProcessor`, which holds the settings."""

    tokenizer: PreTrainedTokenizerBase
    geometry: ImageGeometry
    template: TemplateName
    image_token_id: int
    around_images: AroundImages
    image_mean: Sequence[float]
    max_image_pixels: int
    max_aspect_ratio: float
    _templates: dict[str, Template]

    def encode_sample(
        self,
        sample: Sample,
        template: TemplateName | None = None,
        with_labels: bool = True,
        teacher: TeacherGrid | None = None,
        max_length: int | None = None,
    ) -> dict[str, torch.Tensor]:
        """One sample as the model needs it, without padding.

        Args:
            sample: what to encode.
            template: instead of the processor's own.
            with_labels: add ``labels``, and refuse a sample that has nothing to supervise.
            teacher: add ``teacher_pixel_values`` for this teacher.
            max_length: the text is cut after so many tokens, image slots included.

        Returns:
            ``input_ids`` (T,) int64; ``labels`` (T,) int64, -100 where not supervised; ``pixel_values`` (P, 3 * p * p) uint8;
            ``image_grid_hw`` (N, 2) int64; ``teacher_pixel_values`` (N, 3, C, C) uint8. N and P may be 0.

        Raises:
            SampleError: the sample cannot be used; the message begins with its key.
        """
        with naming(sample.key):
            segments = self._render(sample.conversation, template, with_labels)
        names = image_names(sample.key, len(sample.images))
        images = [self._load(source, name) for source, name in zip(sample.images, names, strict=True)]
        with naming(sample.key):
            lengths = [self.geometry.num_tokens(*image.size, len(images)) for image in images]
            add_bos = self.template_of(template).add_bos
            tokens = self.encoder.encode(segments, lengths, add_bos).truncate(max_length, with_labels)
        features = {"input_ids": torch.tensor(tokens.input_ids)}
        if with_labels:
            features["labels"] = torch.tensor(tokens.labels)
        features |= self._patches([images])
        if teacher is not None:
            features["teacher_pixel_values"] = self._squares(images, teacher)
        return features

    def teacher_squares(self, sample: Sample, teacher: TeacherGrid) -> torch.Tensor:
        """What a teacher sees of the images of a sample: (N, 3, C, C) uint8; the text is not looked at.

        Raises:
            SampleError: an image cannot be used.
        """
        names = image_names(sample.key, len(sample.images))
        return self._squares([self._load(source, name) for source, name in zip(sample.images, names, strict=True)], teacher)

    def _squares(self, images: Sequence[Image.Image], teacher: TeacherGrid) -> torch.Tensor:
        canvases = [teacher.canvas(image, self.geometry) for image in images]
        nothing = torch.zeros(0, 3, teacher.image_size, teacher.image_size, dtype=torch.uint8)
        return torch.stack(canvases) if canvases else nothing

    def count_tokens(
        self,
        sample: Sample,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        template: TemplateName | None = None,
        with_labels: bool = True,
    ) -> int:
        """The length of ``encode_sample(sample)["input_ids"]`` without ``max_length``; no pixel is decoded.

        Args:
            sample: its images are not opened when their sizes are given.
            image_sizes: (width, height) of each image, upright, as ``image_size`` gives them.
            template: instead of the processor's own.
            with_labels: as in ``encode_sample``.

        Raises:
            SampleError: as ``encode_sample``, except for images that turn out to be broken.
        """
        (length,) = self.count_tokens_batch([sample], [image_sizes], template, with_labels)
        if isinstance(length, SampleError):
            raise length
        return length

    def count_tokens_batch(
        self,
        samples: Sequence[Sample],
        image_sizes: Sequence[Sequence[tuple[int, int]] | None] | None = None,
        template: TemplateName | None = None,
        with_labels: bool = True,
        unknown: UnknownWords | None = None,
    ) -> list[int | SampleError]:
        """``count_tokens`` of many samples, tokenised at once and in parallel.

        Args:
            unknown: what the tokenizer does not know of their texts is added to it.

        Returns:
            for each sample its length, or the SampleError that says why it cannot be used.
        """
        sizes = image_sizes if image_sizes is not None else [None] * len(samples)
        lengths: list[int | SampleError] = [0] * len(samples)
        prompts, image_lengths, positions = [], [], []
        for position, (sample, given) in enumerate(zip(samples, sizes, strict=True)):
            try:
                with naming(sample.key):
                    segments = self._render(sample.conversation, template, with_labels)
                measured = self._sizes(sample) if given is None else self._checked(given, sample.key)
            except SampleError as error:
                lengths[position] = error
                continue
            prompts.append(segments)
            image_lengths.append([self.geometry.num_tokens(*size, len(measured)) for size in measured])
            positions.append(position)
        counts = self.encoder.count(prompts, image_lengths, self.template_of(template).add_bos, unknown)
        for position, count in zip(positions, counts, strict=True):
            is_error = isinstance(count, SampleError)
            lengths[position] = SampleError(f"{samples[position].key}: {count}") if is_error else count
        return lengths

    # ---- parts

    @cached_property
    def encoder(self) -> TextEncoder:
        """The tokenizer's rules for plain text, made on first use."""
        return TextEncoder(self.tokenizer, self.image_token_id, self.around_images)

    def template_of(self, template: TemplateName | None = None) -> Template:
        """The template behind a name (or dict), the processor's own by default."""
        spec = self.template if template is None else template
        spec = {"name": spec} if isinstance(spec, str) else dict(spec)
        key = json.dumps(spec, sort_keys=True)
        if key not in self._templates:
            self._templates[key] = templates.build(spec)
        return self._templates[key]

    def answer_end(self, template: TemplateName | None = None) -> AnswerEnd:
        """With what a template ends an answer: what a model that was trained with it writes last.

        Args:
            template: instead of the processor's own.

        Raises:
            ConfigError: the template cannot be used with this tokenizer, or ends an answer with nothing.
        """
        word = "yes"
        messages = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": word}]
        try:
            segments = self._render(messages, template, with_labels=True)
        except SampleError:  # it wants other conversations than this one
            return AnswerEnd(None, None)
        written = [segment for segment in segments if segment.supervised]
        last = max((i for i, segment in enumerate(written) if segment.kind == "text" and word in segment.text), default=-1)
        tail = written[last + 1 :]
        if special := [segment.text for segment in tail if segment.kind == "special"]:
            return AnswerEnd(self.tokenizer.convert_tokens_to_ids(special[-1]), None)
        text = (written[last].text.rpartition(word)[2] if last >= 0 else "") + "".join(segment.text for segment in tail)
        if not text:
            raise ConfigError(
                f"the template {template or self.template!r} ends an answer with nothing, so that a model could never end one"
            )
        return AnswerEnd(None, text)

    def _render(
        self,
        conversation: Conversation,
        template: TemplateName | None,
        with_labels: bool,
        generation_prompt: bool = False,
        open_end: bool = False,
    ) -> list[Segment]:
        messages = parse_conversation(conversation)
        if with_labels:
            check_answers(messages)
        segments = self.template_of(template).render(messages, self.tokenizer, generation_prompt and not open_end)
        if open_end:
            if not messages[-1].is_learned:
                raise SampleError("only an answer can be continued, but the last message is none")
            segments = _without_end(segments, self.answer_end(template))
        if not segments:
            raise SampleError(f"the template {template or self.template!r} leaves nothing of the conversation to ask")
        if with_labels and not any(segment.supervised for segment in segments):
            raise SampleError("nothing of the conversation is supervised")
        return segments

    def _load(self, source: Any, name: str) -> Image.Image:
        return load_image(source, name, max_pixels=self.max_image_pixels, max_aspect_ratio=self.max_aspect_ratio)

    def _sizes(self, sample: Sample) -> list[tuple[int, int]]:
        return [
            image_size(source, name, max_pixels=self.max_image_pixels, max_aspect_ratio=self.max_aspect_ratio)
            for source, name in zip(sample.images, image_names(sample.key, len(sample.images)), strict=True)
        ]

    def _checked(self, sizes: Sequence[tuple[int, int]], key: str) -> Sequence[tuple[int, int]]:
        for size, name in zip(sizes, image_names(key, len(sizes)), strict=True):
            check_size(size, name, self.max_image_pixels, self.max_aspect_ratio)
        return sizes

    def _patches(self, rows: Sequence[Sequence[Image.Image]]) -> dict[str, torch.Tensor]:
        """``pixel_values`` and ``image_grid_hw`` of the images of each row, one after another."""
        made = [patchify(image, self.geometry, len(images)) for images in rows for image in images]
        if not made:
            return {
                "pixel_values": torch.zeros(0, self.geometry.patch_dim, dtype=torch.uint8),
                "image_grid_hw": torch.zeros(0, 2, dtype=torch.int64),
            }
        patches, grids = zip(*made, strict=True)
        return {"pixel_values": torch.cat(patches), "image_grid_hw": torch.tensor(list(chain.from_iterable(grids)))}


def _without_end(segments: Sequence[Segment], end: AnswerEnd) -> list[Segment]:
    """A conversation up to where the end of its last answer is written."""
    left = list(segments)
    if end.token is not None:
        while left and not (left[-1].kind == "special" and left[-1].supervised):
            left.pop()
        return left[:-1]
    while left and not (left[-1].kind == "text" and left[-1].supervised):
        left.pop()
    if left and end.text:
        left[-1] = replace(left[-1], text=left[-1].text.removesuffix(end.text))
    return left
