"""``generate`` with images: which of them a step needs, and what its ways of decoding must know about image slots.

Notation: B rows, T tokens, N images, P patches, p side of a patch, V vocabulary.
"""

from __future__ import annotations

from traceback import walk_stack
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import Cache, GenerationConfig, GenerationMixin, LogitsProcessorList
from transformers.generation.candidate_generator import CandidateGenerator, PromptLookupCandidateGenerator
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor
from transformers.generation.stopping_criteria import StoppingCriteriaList
from transformers.masking_utils import create_masks_for_generate

from lit_eve.errors import LitEveError
from lit_eve.models.generation.images import images_of_slots, repeat_images
from lit_eve.models.splice import check

_IMAGES = ("pixel_values", "image_grid_hw")


class ImageGenerationMixin(GenerationMixin):
    """transformers' ``generate`` for a model whose images are no rows of a batch, and enter with the prompt only."""

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Arguments of the next forward; of the images, those whose slots are not in the KV cache yet.

        Raises:
            LitEveError: ``inputs_embeds`` beside images, or a cache that ends inside an image.
        """
        images = {key: kwargs.pop(key, None) for key in _IMAGES}
        inputs = super().prepare_inputs_for_generation(
            input_ids, next_sequence_length, past_key_values, attention_mask, inputs_embeds, is_first_iteration, **kwargs
        )
        if inputs.get("inputs_embeds") is None:  # what it tells belongs to the prompt
            inputs.pop("image_mask", None)
        inputs |= self._image_numbers(inputs, input_ids, images["image_grid_hw"], is_first_iteration)
        inputs |= self._token_positions(inputs, input_ids, images["image_grid_hw"], attention_mask)
        if inputs_embeds is not None:
            if images["pixel_values"] is not None and len(images["pixel_values"]):
                raise LitEveError("inputs_embeds hold the images already (model.embed_inputs): leave pixel_values out")
            return inputs
        rest = inputs["input_ids"]  # (B, what is new)
        is_step = past_key_values is not None and past_key_values.get_seq_length() > 0 and rest.shape[1] == 1
        if images["pixel_values"] is None or is_step:
            return inputs
        return inputs | images_of_slots(
            input_ids, rest.shape[1], **images, geometry=self.geometry, image_token_id=self.config.image_token_id
        )

    def _image_numbers(
        self, inputs: dict[str, Any], input_ids: Tensor, image_grid_hw: Tensor | None, is_first_iteration: bool
    ) -> dict[str, Tensor | None]:
        """Which tokens are an image's, where the next forward must be told: (B, K), those in the KV cache with them."""
        numbers, kind = inputs.get("image_numbers"), self.image_attention
        if kind.is_causal or not (kind.hides or is_first_iteration):  # what comes after the prompt is text
            return {"image_numbers": None}
        if numbers is None and kind.hides and inputs.get("inputs_embeds") is None:
            self._check_images(input_ids, image_grid_hw)
            numbers = self.number_images(input_ids, image_grid_hw)
        if numbers is None:
            return {}
        past, new = inputs.get("past_key_values"), inputs.get("inputs_embeds")
        known = (0 if past is None else int(past.get_seq_length())) + (inputs["input_ids"] if new is None else new).shape[1]
        return {"image_numbers": F.pad(numbers, (0, known - numbers.shape[1]), value=-1)}

    def _token_positions(
        self,
        inputs: dict[str, Any],
        input_ids: Tensor,
        image_grid_hw: Tensor | None,
        attention_mask: Tensor | None,
    ) -> dict[str, Tensor]:
        """Where the tokens of the next forward stand: (B, what is new, 4), unless they are counted."""
        given, past, new = (inputs.get(key) for key in ("token_positions", "past_key_values", "inputs_embeds"))
        if self.positions.is_sequential or (given is None and new is not None):
            return {}
        length = (inputs["input_ids"] if new is None else new).shape[1]
        known = (0 if past is None else int(past.get_seq_length())) + length
        if given is None:
            self._check_images(input_ids, image_grid_hw)
            given = self.position_tokens(input_ids, image_grid_hw, attention_mask)
            if given.shape[1] != known:
                raise LitEveError(f"input_ids hold {given.shape[1]} tokens, but with the KV cache there are {known}")
        given = torch.cat([given, self.positions.following(given, max(known - given.shape[1], 0))], 1)
        return {"token_positions": given[:, -length:]}

    def _check_images(self, input_ids: Tensor, image_grid_hw: Tensor | None) -> None:
        grid = input_ids.new_empty(0, 2) if image_grid_hw is None else image_grid_hw
        slots = (input_ids == self.config.image_token_id).sum()
        check(slots == self.geometry.num_tokens_of_grid(grid).sum(), "give generate the images of all image slots")

    def create_masks_for_generate(self, *args: Any, inputs_embeds: Tensor, attention_mask: Any = None, **kwargs: Any) -> Any:
        """The masks that ``generate`` makes beforehand, with static caches; those with images are made by the model."""
        kind = self.image_attention
        if not kind.is_causal and (kind.hides or inputs_embeds.shape[1] > 1):
            return attention_mask
        return create_masks_for_generate(*args, inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Beams and several samples per prompt repeat rows; patches are no rows and are repeated image by image."""
        images = {key: kwargs.pop(key, None) for key in _IMAGES}
        if expand_size > 1 and images["pixel_values"] is not None:
            images = repeat_images(
                input_ids, **images, times=expand_size, geometry=self.geometry, image_token_id=self.config.image_token_id
            )
        input_ids, kwargs = super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **kwargs)
        return input_ids, kwargs | {key: value for key, value in images.items() if value is not None}

    def _validate_generation_mode(self, generation_mode: Any, generation_config: GenerationConfig, *args: Any) -> None:
        """
        Raises:
            LitEveError: several answers per prompt through a ``pipeline`` that loses them.
        """
        super()._validate_generation_mode(generation_mode, generation_config, *args)
        if (generation_config.num_return_sequences or 1) > 1 and _pipeline_loses_answers():
            raise LitEveError(
                f"num_return_sequences: the pipeline of transformers {transformers.__version__} gives one answer per prompt, "
                "in a batch that of another prompt: call generate, or install transformers 5.23"
            )

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> LogitsProcessorList:
        processors = super()._get_logits_processor(*args, **kwargs)
        if self.config.image_token_id < self.config.text_config.vocab_size:
            return processors
        return _WithImageSlots(processors, self.config.image_token_id, self.config.text_config.vocab_size)

    def _get_stopping_criteria(self, generation_config: GenerationConfig, *args: Any, **kwargs: Any) -> StoppingCriteriaList:
        try:
            return super()._get_stopping_criteria(generation_config, *args, **kwargs)
        except ValueError as error:
            if generation_config.stop_strings is None or str(error) != "substring not found":
                raise
            raise LitEveError("stop_strings: transformers cannot take the vocabulary of this tokenizer apart") from error

    def _get_candidate_generator(
        self,
        generation_config: GenerationConfig,
        *args: Any,
        model_kwargs: dict[str, Any],
        assistant_model: Any = None,
        **kwargs: Any,
    ) -> CandidateGenerator:
        """
        Raises:
            LitEveError: an assistant that would not see what this model sees.
        """
        if generation_config.assistant_early_exit is not None:
            raise LitEveError("assistant_early_exit: no EVE is trained to answer from an inner layer; give an assistant_model")
        if assistant_model is not None:
            self._check_assistant(assistant_model, model_kwargs)
        generator = super()._get_candidate_generator(
            generation_config, *args, model_kwargs=model_kwargs, assistant_model=assistant_model, **kwargs
        )
        if isinstance(generator, PromptLookupCandidateGenerator):  # what it copies from the prompt may be an image slot
            generator.vocab_size = max(generator.vocab_size, self.config.image_token_id + 1)
        return generator

    def _check_assistant(self, assistant: Any, model_kwargs: dict[str, Any]) -> None:
        pixels = model_kwargs.get("pixel_values")
        if isinstance(assistant, ImageGenerationMixin):
            for name, own, other in (
                ("geometry", self.geometry, assistant.geometry),
                ("image_token_id", self.config.image_token_id, assistant.config.image_token_id),
            ):
                if own != other:
                    raise LitEveError(f"assistant_model has another {name}: {other} instead of {own}")
        elif pixels is not None and len(pixels):
            raise LitEveError("assistant_model reads no images: give another, smaller EVE")
        else:  # transformers would hand it all that this model takes
            for key in _IMAGES:
                model_kwargs.pop(key, None)


class _WithImageSlots(LogitsProcessorList):
    """Processors that look at the prompt, whose image slots carry an id behind the vocabulary: a column for them is added."""

    def __init__(self, processors: LogitsProcessorList, image_token_id: int, vocab_size: int) -> None:
        super().__init__(processors)
        self.image_token_id, self.vocab_size = image_token_id, vocab_size

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        width = scores.shape[1]
        columns = max(width, self.image_token_id + 1)
        for processor in self:
            if isinstance(processor, UnbatchedClassifierFreeGuidanceLogitsProcessor):  # asks the model for scores of its own
                scores = processor(input_ids, scores[:, : self.vocab_size])
            else:
                scores = LogitsProcessorList([processor])(input_ids, _widened(scores, columns), **kwargs)
        scores = _widened(scores, columns).clone()  # (B, columns)
        scores[:, self.image_token_id] = -torch.inf
        return scores[:, :width]


def _pipeline_loses_answers() -> bool:
    """Whether one asks that takes row i of what is generated for the answer to prompt i: only the stack tells who asks."""
    if tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 23):
        return False
    return any(frame.f_globals.get("__name__") == "transformers.pipelines.image_text_to_text" for frame, _ in walk_stack(None))


def _widened(scores: Tensor, columns: int) -> Tensor:
    return torch.nn.functional.pad(scores, (0, columns - scores.shape[1]), value=-torch.inf)
