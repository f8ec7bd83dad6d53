"""``EveProcessor``: what transformers, and all that is written for its processors, expects between a user and a model.

Legend: B rows, T tokens, N images, P patches of all images, p side of a patch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from PIL import Image
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from lit_eve.errors import ConfigError
from lit_eve.files import local_path
from lit_eve.processing.around_images import AroundImages
from lit_eve.processing.encoder import Conversation, SampleEncoder, TemplateName
from lit_eve.processing.geometries import GEOMETRIES, ImageGeometry
from lit_eve.processing.images import CLIP_MEAN, CLIP_STD, MAX_ASPECT_RATIO, MAX_PIXELS
from lit_eve.processing.inputs import Padding, check_prompts, deal, flatten, image_names, images_of, is_single, pad_rows
from lit_eve.processing.sample import IMAGE_PLACEHOLDER, naming
from lit_eve.processing.templates import Segment, split_prompt, starts_with_bos, templates

# Arguments of transformers' apply_chat_template that ask for nothing, or for what is always done, when they have this value.
_NOTHING = {
    "tools": None,
    "documents": None,
    "return_assistant_tokens_mask": False,
    "load_audio_from_video": False,
    "sanitize_control_tokens": True,
}


class EveProcessor(SampleEncoder, ProcessorMixin):
    """Images and conversations to token ids, labels and patches.

    Args:
        tokenizer: the decoder's tokenizer (a fast one). It is made to pad as generation needs it: on the left, and with its
            end of text where it has no padding token.
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
        template_module, geometry_module: the module that brings ``template`` or ``geometry``, where a saved processor says that
            it is not lit_eve's.
        around_images: tokens before and after the slots of each image, as in ``{"before": "<img>", "after": "</img>"}``
            (:class:`~lit_eve.processing.around_images.AroundImages`); None: nothing.

    Raises:
        ConfigError: unknown template, unusable geometry, or a tokenizer that is not fast or lacks a token of ``around_images``.
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
        template_module: str | None = None,
        geometry_module: str | None = None,
        around_images: Mapping[str, Any] | None = None,
    ) -> None:
        ProcessorMixin.__init__(self, tokenizer, chat_template=chat_template)
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if template_module is not None:
            templates.require(_name_of(template), template_module)
        if not isinstance(geometry, ImageGeometry):
            if geometry_module is not None:
                GEOMETRIES.require(geometry["name"], geometry_module)
            geometry = ImageGeometry.from_dict(geometry or {})
        if image_token_id is None:
            image_token_id = tokenizer.get_vocab().get(image_token)
        if image_token_id is None:
            image_token_id = max(tokenizer.get_vocab().values()) + 1
        self.geometry = geometry
        self.template = template
        self.image_token = image_token
        self.image_token_id = image_token_id
        self.around_images = AroundImages.of(around_images)
        self.around_images.segments(tokenizer, image_token_id)  # says whether the tokenizer has them
        self.image_mean = tuple(image_mean)
        self.image_std = tuple(image_std)
        self.max_image_pixels = max_image_pixels
        self.max_aspect_ratio = max_aspect_ratio
        self._templates = {}
        self.template_of(template)

    @property
    def image_processor(self) -> EveProcessor:
        """Itself, for whoever looks for the part that prepares images: a pipeline does, to batch and to save."""
        return self

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        conversation: Conversation | Sequence[Conversation] | None = None,
        template: TemplateName | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        add_special_tokens: bool = True,
        return_tensors: str | None = "pt",
        keys: Sequence[str] | None = None,
        **options: Any,
    ) -> BatchFeature:
        """Prompts for ``generate``.

        Args:
            images: one image, a list of them (dealt out to the prompts in order), or a list of lists, one per prompt; each
                is anything that :func:`~lit_eve.processing.sources.fetch` takes. Those inside a conversation need not be given.
            text: finished prompts, with ``<image>`` at the place of each image (and of what stands around it); special tokens
                in them count as such.
            conversation: one conversation or a list of them, in the format of LLaVA or of transformers; instead of ``text``.
            template: how conversations are written, instead of the processor's own.
            add_generation_prompt: end with what makes the model answer ("ASSISTANT:").
            continue_final_message: leave the last answer open, to be continued.
            add_special_tokens: begin each text with the tokenizer's own beginning (``<s>``), unless it does so already.
            return_tensors: "pt", or None for lists of ids.
            keys: what the prompts are called in error messages: "prompt 1", ... by default.
            **options: how rows are brought to one length, fields of :class:`~lit_eve.processing.inputs.Padding`; also inside
                ``text_kwargs``, as transformers groups them.

        Returns:
            ``input_ids`` and ``attention_mask`` (B, T) int64, ``pixel_values`` (P, 3 * p * p) uint8 and ``image_grid_hw``
            (N, 2) int64, with P = N = 0 where there are no images. Of images alone: the latter two.

        Raises:
            SampleError: a prompt that does not fit its images, is too long, or an image that cannot be used.
            ConfigError: arguments that contradict each other.
            TypeError: an argument that is none.
        """
        padding = Padding.of(options)
        if return_tensors not in ("pt", None):
            raise ConfigError(f"return_tensors must be 'pt' or None, got {return_tensors!r}")
        if text is not None and conversation is not None or images is None and text is None and conversation is None:
            raise ConfigError("give the processor either text or a conversation, or images alone")
        if text is None and conversation is None:
            sources = flatten(images)
            names = image_names("images", len(sources))
            loaded = [self._load(source, name) for source, name in zip(sources, names, strict=True)]
            return BatchFeature(self._patches([[image] for image in loaded]), tensor_type=return_tensors)
        if text is not None:
            prompts = [split_prompt(prompt, self.tokenizer) for prompt in check_prompts(text)]
            add_bos = [add_special_tokens and not starts_with_bos(prompt, self.tokenizer) for prompt in prompts]
        else:
            conversations = [conversation] if is_single(conversation) else conversation
            prompts = []
            for one, key in zip(conversations, keys or _names_of(conversations), strict=True):
                with naming(key):
                    prompts.append(self._render(one, template, False, add_generation_prompt, continue_final_message))
            add_bos = [self.template_of(template).add_bos] * len(prompts)
            if images is None:
                images = [images_of(one) for one in conversations]
        keys = keys or _names_of(prompts)
        rows, loaded = self._encode_prompts(prompts, add_bos, images, keys)
        width = padding.width([len(row) for row in rows], keys, self.tokenizer.model_max_length)
        pad = self.tokenizer.pad_token_id or 0  # masked, so that any id will do
        return BatchFeature(
            pad_rows(rows, pad, padding.padding_side, width) | self._patches(loaded), tensor_type=return_tensors
        )

    def _encode_prompts(
        self, prompts: Sequence[Sequence[Segment]], add_bos: Sequence[bool], images: Any, keys: Sequence[str]
    ) -> tuple[list[list[int]], list[list[Image.Image]]]:
        """The ids and the images of each prompt."""
        rows: list[list[int]] = []
        loaded: list[list[Image.Image]] = []
        dealt = deal(images, [sum(segment.kind == "image" for segment in prompt) for prompt in prompts])
        for prompt, bos, sources, key in zip(prompts, add_bos, dealt, keys, strict=True):
            names = image_names(key, len(sources))
            row_images = [self._load(source, name) for source, name in zip(sources, names, strict=True)]
            with naming(key):
                lengths = [self.geometry.num_tokens(*image.size, len(row_images)) for image in row_images]
                rows.append(self.encoder.encode(prompt, lengths, bos).input_ids)
            loaded.append(row_images)
        return rows, loaded

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

        Raises:
            as ``__call__``.
        """
        if chat_template is not None:
            raise ConfigError("the processor writes conversations with its own templates; pass template=... instead")
        if add_generation_prompt and continue_final_message:
            raise ConfigError("either add_generation_prompt or continue_final_message: an answer is begun or continued")
        kwargs = {key: value for key, value in kwargs.items() if value is not _NOTHING.get(key, _NOTHING)}
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
        Padding.of({**kwargs, **(processor_kwargs or {})})  # without ids they change nothing, but are looked at
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
        if hasattr(token_ids, "tolist"):
            token_ids = token_ids.tolist()
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        if ids and not isinstance(ids[0], int) and getattr(ids[0], "shape", None) != ():
            return self.batch_decode(ids, **kwargs)
        return self.tokenizer.decode([int(id) for id in ids if id != self.image_token_id], **kwargs)

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> str | list[str]:
        """What ``pipeline("image-text-to-text")`` calls on the ids (B, T) that were generated; of one row, its text."""
        return self.decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values", "image_grid_hw"]

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """As in transformers, into the folder where :func:`lit_eve.load` looks for it."""
        return super().save_pretrained(local_path(save_directory), *args, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """What ``processor_config.json`` holds; the tokenizer has its own files."""
        geometry = self.geometry.to_dict()
        return {
            "processor_class": type(self).__name__,
            "geometry": geometry,
            **({"geometry_module": module} if (module := GEOMETRIES.module_of(geometry["name"])) else {}),
            "template": self.template if isinstance(self.template, str) else dict(self.template),
            **({"template_module": module} if (module := templates.module_of(_name_of(self.template))) else {}),
            "image_token": self.image_token,
            "image_token_id": self.image_token_id,
            **({"around_images": self.around_images.to_dict()} if self.around_images else {}),
            "image_mean": list(self.image_mean),
            "image_std": list(self.image_std),
            "max_image_pixels": self.max_image_pixels,
            "max_aspect_ratio": self.max_aspect_ratio,
        }


def _names_of(prompts: Sequence[Any]) -> list[str]:
    return [f"prompt {index + 1}" for index in range(len(prompts))]


def _name_of(template: TemplateName) -> str:
    return template if isinstance(template, str) else template.get("name", "")
