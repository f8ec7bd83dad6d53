"""``EveProcessor``: everything between a sample and the model's inputs, for training and for inference.

Legend: B rows, T tokens, N images, P patches of all images, p side of a patch, C side of the teacher's square.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from lit_eve.errors import ConfigError, SampleError
from lit_eve.processing.geometry import ImageGeometry
from lit_eve.processing.images import (
    CLIP_MEAN,
    CLIP_STD,
    MAX_ASPECT_RATIO,
    MAX_PIXELS,
    ImageSource,
    check_size,
    image_size,
    load_image,
    patchify,
    teacher_canvas,
)
from lit_eve.processing.inputs import deal, fetch, image_names, images_of, is_single, pad_rows
from lit_eve.processing.sample import IMAGE_PLACEHOLDER, Sample, check_answers, naming, parse_conversation
from lit_eve.processing.templates import Segment, Template, split_prompt, starts_with_bos, templates
from lit_eve.processing.tokenize import TextEncoder

TemplateName = str | Mapping[str, Any]
Conversation = Sequence[Mapping[str, Any]]


class EveProcessor(ProcessorMixin):
    """Images and conversations to token ids, labels and patches.

    Args:
        tokenizer: the decoder's tokenizer (a fast one).
        geometry: the model's image sizes, or their dict; EVE-7B's by default.
        template: how conversations are written unless a call says otherwise: the name of a registered template, or
            ``{"name": ..., **arguments}``.
        image_token: how the slot of an image is called.
        image_token_id: what fills the slots of images. By default the id of ``image_token``; for a tokenizer without it,
            the first id that the vocabulary does not have.
        image_mean: mean of the pixels that the model subtracts, in 0..1, also the colour around the teacher's image.
        image_std: what the model divides by; only kept here, for whoever needs the pixels normalised.
        max_image_pixels: images of more pixels are refused.
        max_aspect_ratio: images that are narrower are refused.
        chat_template: what transformers found beside the tokenizer; the template ``chat`` asks the tokenizer itself.

    Raises:
        ConfigError: unknown template, unusable geometry, or a tokenizer that is not fast.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        geometry: ImageGeometry | Mapping[str, Any] | None = None,
        template: TemplateName = "vicuna_v1",
        image_token: str = IMAGE_PLACEHOLDER,
        image_token_id: int | None = None,
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_STD,
        max_image_pixels: int = MAX_PIXELS,
        max_aspect_ratio: float = MAX_ASPECT_RATIO,
        chat_template: str | dict[str, str] | None = None,
    ) -> None:
        super().__init__(tokenizer, chat_template=chat_template)
        if not isinstance(geometry, ImageGeometry):
            geometry = ImageGeometry.from_dict(geometry or {})
        if image_token_id is None:
            image_token_id = tokenizer.get_vocab().get(image_token)
        if image_token_id is None:
            image_token_id = max(tokenizer.get_vocab().values()) + 1
        self.geometry = geometry
        self.template = template
        self.image_token = image_token
        self.image_token_id = image_token_id
        self.image_mean = tuple(image_mean)
        self.image_std = tuple(image_std)
        self.max_image_pixels = max_image_pixels
        self.max_aspect_ratio = max_aspect_ratio
        self._templates: dict[str, Template] = {}
        self.template_of(template)

    # ---- training: one sample

    def encode_sample(
        self,
        sample: Sample,
        template: TemplateName | None = None,
        with_labels: bool = True,
        with_teacher: bool = False,
        max_length: int | None = None,
    ) -> dict[str, torch.Tensor]:
        """One sample as the model needs it, without padding.

        Args:
            sample: what to encode.
            template: instead of the processor's own.
            with_labels: add ``labels``, and refuse a sample that has nothing to supervise.
            with_teacher: add ``teacher_pixel_values``.
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
            lengths = [self.geometry.num_tokens(*image.size) for image in images]
            add_bos = self.template_of(template).add_bos
            tokens = self.encoder.encode(segments, lengths, add_bos).truncate(max_length, with_labels)
        features = {"input_ids": torch.tensor(tokens.input_ids)}
        if with_labels:
            features["labels"] = torch.tensor(tokens.labels)
        features |= self._patches(images)
        if with_teacher:
            side = self.geometry.teacher_image_size
            canvases = [teacher_canvas(image, self.geometry, self.image_mean) for image in images]
            features["teacher_pixel_values"] = (
                torch.stack(canvases) if canvases else torch.zeros(0, 3, side, side, dtype=torch.uint8)
            )
        return features

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
    ) -> list[int | SampleError]:
        """``count_tokens`` of many samples, tokenised at once and in parallel.

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
            image_lengths.append([self.geometry.num_tokens(*size) for size in measured])
            positions.append(position)
        counts = self.encoder.count(prompts, image_lengths, self.template_of(template).add_bos)
        for position, count in zip(positions, counts, strict=True):
            is_error = isinstance(count, SampleError)
            lengths[position] = SampleError(f"{samples[position].key}: {count}") if is_error else count
        return lengths

    # ---- inference: a batch

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        conversation: Conversation | Sequence[Conversation] | None = None,
        template: TemplateName | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        padding: bool | str = True,
        padding_side: str = "left",
        return_tensors: str | None = "pt",
        keys: Sequence[str] | None = None,
    ) -> BatchFeature:
        """Prompts for ``generate``.

        Args:
            images: one image, a list of them (dealt out to the prompts in order), or a list of lists, one per prompt; each
                the bytes of a file, a path, a URL, an array or a PIL image. Images inside a conversation need not be given.
            text: finished prompts, with ``<image>`` at the place of each image; special tokens in them count as such.
            conversation: one conversation or a list of them, in the format of LLaVA or of transformers; instead of ``text``.
            template: how conversations are written, instead of the processor's own.
            add_generation_prompt: end with what makes the model answer ("ASSISTANT:").
            continue_final_message: leave the last answer open, to be continued.
            padding: False leaves rows of different length as they are, which lists allow, but not tensors.
            padding_side: where ``generate`` needs the padding: left.
            return_tensors: "pt", or None for lists of ids.
            keys: what the prompts are called in error messages: "prompt 1", ... by default.

        Returns:
            ``input_ids`` and ``attention_mask`` (B, T) int64; with images ``pixel_values`` (P, 3 * p * p) uint8 and
            ``image_grid_hw`` (N, 2) int64.

        Raises:
            SampleError: a prompt that does not fit its images, or an image that cannot be used.
        """
        if (text is None) == (conversation is None):
            raise ConfigError("give the processor either text or a conversation")
        if return_tensors not in ("pt", None):
            raise ConfigError(f"return_tensors must be 'pt' or None, got {return_tensors!r}")
        if text is not None:
            prompts = [split_prompt(prompt, self.tokenizer) for prompt in ([text] if isinstance(text, str) else text)]
            add_bos = [not starts_with_bos(prompt, self.tokenizer) for prompt in prompts]
        else:
            conversations = [conversation] if is_single(conversation) else conversation
            prompts = [
                self._render(one, template, False, add_generation_prompt, continue_final_message) for one in conversations
            ]
            add_bos = [self.template_of(template).add_bos] * len(prompts)
            if images is None:
                images = [images_of(one) for one in conversations]
        loaded: list[Image.Image] = []
        rows: list[list[int]] = []
        sources = deal(images, [sum(segment.kind == "image" for segment in prompt) for prompt in prompts])
        for index, (prompt, bos, row_sources) in enumerate(zip(prompts, add_bos, sources, strict=True)):
            key = f"prompt {index + 1}" if keys is None else keys[index]
            names = image_names(key, len(row_sources))
            row_images = [self._load(fetch(source, name), name) for source, name in zip(row_sources, names, strict=True)]
            with naming(key):
                lengths = [self.geometry.num_tokens(*image.size) for image in row_images]
                rows.append(self.encoder.encode(prompt, lengths, bos).input_ids)
            loaded += row_images
        pad = self.tokenizer.pad_token_id
        if pad is None:
            pad = self.tokenizer.eos_token_id or 0  # masked, so that any id will do
        features = pad_rows(rows, pad, padding_side, padding not in (False, "do_not_pad"))
        return BatchFeature(features | (self._patches(loaded) if loaded else {}), tensor_type=return_tensors)

    def apply_chat_template(
        self,
        conversation: Conversation | Sequence[Conversation],
        chat_template: str | None = None,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = "pt",
        template: TemplateName | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> str | list[str] | BatchFeature | Any:
        """Write conversations with the processor's template, as transformers' processors do.

        Args:
            conversation: messages, or a list of conversations; images stand in the messages, as in ``{"role": "user",
                "content": [{"type": "image", "path": "cat.png"}, {"type": "text", "text": "What is it?"}]}``.
            chat_template: not taken; pass ``template``.
            tokenize: give ids instead of the prompt.
            return_dict: with ``tokenize``, everything that ``__call__`` returns instead of ``input_ids`` alone.
            processor_kwargs: more arguments of ``__call__``; those may also be given directly.

        Returns:
            the prompt (for several conversations, a list), ``input_ids``, or a BatchFeature.
        """
        if chat_template is not None:
            raise ConfigError("the processor writes conversations with its own templates; pass template=... instead")
        if tokenize:
            features = self(
                conversation=conversation,
                template=template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                return_tensors=return_tensors,
                **kwargs,
                **(processor_kwargs or {}),
            )
            return features if return_dict else features["input_ids"]
        if kwargs:
            raise TypeError(f"apply_chat_template() got unexpected arguments: {', '.join(kwargs)}")
        conversations = [conversation] if is_single(conversation) else conversation
        prompts = [
            "".join(
                segment.text for segment in self._render(one, template, False, add_generation_prompt, continue_final_message)
            )
            for one in conversations
        ]
        return prompts[0] if is_single(conversation) else prompts

    def batch_decode(self, sequences: Any, **kwargs: Any) -> list[str]:
        """The texts of rows of ids, image slots left out."""
        return [self.decode(ids, **kwargs) for ids in sequences]

    def decode(self, token_ids: Any, **kwargs: Any) -> str | list[str]:
        """The text of one row of ids (of a batch, a list), image slots left out."""
        ids = torch.as_tensor(token_ids)
        if ids.ndim > 1:
            return self.batch_decode(ids, **kwargs)
        ids = ids.reshape(-1)
        return self.tokenizer.decode(ids[ids != self.image_token_id].tolist(), **kwargs)

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """What ``pipeline("image-text-to-text")`` calls on the ids (B, T) that were generated."""
        return self.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values", "image_grid_hw"]

    def to_dict(self) -> dict[str, Any]:
        """What ``processor_config.json`` holds; the tokenizer has its own files."""
        return {
            "processor_class": type(self).__name__,
            "geometry": self.geometry.to_dict(),
            "template": self.template if isinstance(self.template, str) else dict(self.template),
            "image_token": self.image_token,
            "image_token_id": self.image_token_id,
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
            "max_image_pixels": self.max_image_pixels,
            "max_aspect_ratio": self.max_aspect_ratio,
        }

    # ---- parts

    @cached_property
    def encoder(self) -> TextEncoder:
        """The tokenizer's rules for plain text, made on first use."""
        return TextEncoder(self.tokenizer, self.image_token_id)

    def template_of(self, template: TemplateName | None = None) -> Template:
        """The template behind a name (or dict), the processor's own by default."""
        spec = self.template if template is None else template
        spec = {"name": spec} if isinstance(spec, str) else dict(spec)
        key = json.dumps(spec, sort_keys=True)
        if key not in self._templates:
            self._templates[key] = templates.build(spec)
        return self._templates[key]

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
            if messages[-1].role != "assistant":
                raise SampleError("only an answer can be continued, but the last message is none")
            while segments and not (segments[-1].kind == "text" and segments[-1].supervised):
                segments.pop()
        if with_labels and not any(segment.supervised for segment in segments):
            raise SampleError("nothing of the conversation is supervised")
        return segments

    def _load(self, source: ImageSource, name: str) -> Image.Image:
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

    def _patches(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """``pixel_values`` and ``image_grid_hw`` of images, one after another."""
        if not images:
            return {
                "pixel_values": torch.zeros(0, self.geometry.patch_dim, dtype=torch.uint8),
                "image_grid_hw": torch.zeros(0, 2, dtype=torch.int64),
            }
        patches, grids = zip(*(patchify(image, self.geometry) for image in images), strict=True)
        return {"pixel_values": torch.cat(patches), "image_grid_hw": torch.tensor(grids)}
