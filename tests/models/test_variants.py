"""The contract of :func:`lit_eve.testing.check_variant`: every composition keeps it, and what breaks it is told why."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_eve.errors import ConfigError
from lit_eve.models import (
    DECODER_KINDS,
    IMAGE_ATTENTIONS,
    PATCH_EMBEDDINGS,
    PROJECTORS,
    SUPERVISIONS,
    DecoderKind,
    EveConfig,
    ImageAttention,
    ImageTokens,
    PatchEmbedding,
    Supervision,
)
from lit_eve.models.decoders import blocks_of, decoder_of
from lit_eve.processing import GEOMETRIES, ImageGeometry
from lit_eve.testing import check_variant
from lit_eve.testing.composition import config_of
from lit_eve.testing.processes import check_processes
from tests.models.variants import DESIGNS, ENTRIES, REGISTRIES, compositions_of

NAMES = [str(folder.relative_to(DESIGNS[0].parent)) for folder in DESIGNS]
TRIED = [
    "models/gemma4_unified/nano",
    "models/mono_internvl/nano",
    "models/neo/nano",
]  # tests/test_designs.py and tests/nano train others
designs = pytest.mark.parametrize(
    "design",
    [
        pytest.param(folder, marks=() if name in TRIED else pytest.mark.slow, id=name)
        for folder, name in zip(DESIGNS, NAMES, strict=True)
    ],
)
PLAIN = {"patch_embedding-linear", "projector-mlp_gelu", "decoder_kind-dense", "image_attention-causal", "positions-sequential"}
entries = pytest.mark.parametrize(
    "composition",
    [  # what is plain is beside each geometry already
        pytest.param(composition, marks=pytest.mark.slow if name in PLAIN else (), id=name)
        for name, composition in ENTRIES.items()
    ],
)
MANY = {
    "patch_embedding": {"name": "eve_v1", "width": 16, "num_heads": 4},
    "decoder_kind": {"name": "experts"},
    "image_attention": {"name": "bidirectional"},
    "supervision": [
        {"name": "patch_alignment", "aligner": {"name": "layerwise", "layer_interval": 2}},
        {"name": "next_patch", "weight": 0.5},
        {"name": "distillation"},
    ],
    "text_config": {"model_type": "qwen3", "head_dim": 8, "tie_word_embeddings": True},
    "tie_word_embeddings": True,
}


@entries
def test_every_entry_keeps_the_contract(composition):
    assert check_variant(composition) == {}


@designs
def test_every_design_keeps_the_contract(design):
    for composition in compositions_of(design):
        assert check_variant(composition) == {}


def test_many_parts_together_keep_it_in_processes_too():
    assert check_variant(MANY, processes=True) == {}


@pytest.mark.parametrize("use_dora", [False, True])
def test_adapters_of_peft_keep_the_contract(use_dora):
    pytest.importorskip("peft")
    lora = {"rank": 2, "alpha": 4, "dropout": 0.1, "target_modules": ["q_proj", "up_proj"], "use_dora": use_dora}
    refused = check_variant({"lora": lora})
    assert list(refused) == ["plan"] * use_dora and all("what DoRA keeps" in why for why in refused.values())


@pytest.mark.slow
@entries
def test_every_entry_trains_in_processes(composition):
    check_processes(config_of(composition))


@pytest.mark.slow
@designs
def test_every_design_trains_in_processes(design):
    for composition in compositions_of(design):
        check_processes(config_of(composition))


# ---- parts from outside the package


@pytest.fixture
def own(monkeypatch):
    """Registers parts for one test."""
    registries = {
        "geometry": GEOMETRIES,
        "patch_embedding": PATCH_EMBEDDINGS,
        "projector": PROJECTORS,
        "decoder_kind": DECODER_KINDS,
        "image_attention": IMAGE_ATTENTIONS,
        "supervision": SUPERVISIONS,
    }

    def composition(**parts: type) -> dict[str, Any]:
        for key, part in parts.items():
            monkeypatch.setitem(registries[key]._variants, "own", part)
        return {key: [{"name": "own"}] if key == "supervision" else {"name": "own"} for key in parts}

    return composition


@dataclass(frozen=True)
class Stripes(ImageGeometry):
    """Every photo is two tokens high."""

    patch_size: int = 4
    split_token: bool = False

    def resized(self, width: int, height: int, images: int = 1) -> tuple[int, int]:
        return max(width // self.token_size, 1) * self.token_size, 2 * self.token_size


class Positioned(PatchEmbedding):
    """Linear patches that know their image's shape."""

    def __init__(self, geometry: ImageGeometry, width: int = 24) -> None:
        super().__init__(geometry, width)
        self.projection = nn.Linear(self.window * geometry.patch_dim, width)
        self.shape = nn.Linear(2, width)

    def forward(self, patches: Tensor, image_of_token: Tensor, num_images: int, grid_hw: Tensor) -> ImageTokens:
        tokens = self.projection(patches.unflatten(0, (-1, self.window)).flatten(1))
        return self.with_embeddings(tokens + self.shape(grid_hw.to(tokens.dtype))[image_of_token], num_images)


class LastTwo(ImageAttention):
    """Images are whole, words see no image but the two last ones."""

    def sees(self, query, key):
        return (key.image < 0) | (query.image >= 0) | (query.place - key.place < 12)


class Brightness(Supervision):
    """Image tokens tell how bright their pixels are."""

    term = "brightness_loss"

    def __init__(self, hidden_size: int) -> None:
        self.head, self.taps = nn.Linear(hidden_size, 1), (2,)

    def positions(self, images):
        return images.layout.token_position

    def error(self, images, hidden):
        return (self.head(hidden[0]).float()[:, 0] - images.windows.mean(1)).square()

    def loss(self, images, hidden, teacher):
        return self.error(images, hidden).sum()


def test_parts_of_ones_own_keep_it_together(own):
    parts = own(geometry=Stripes, patch_embedding=Positioned, image_attention=LastTwo, supervision=Brightness)
    assert check_variant(parts, processes=False) == {}


@pytest.mark.slow
def test_parts_of_ones_own_keep_it_in_processes(own):
    parts = own(geometry=Stripes, patch_embedding=Positioned, image_attention=LastTwo, supervision=Brightness)
    check_processes(config_of(parts))


# ---- what breaks it


class SeesNeighbours(Positioned):
    """A normalisation over the batch."""

    def forward(self, patches, image_of_token, num_images, grid_hw):
        tokens, classes, split = super().forward(patches, image_of_token, num_images, grid_hw)
        return ImageTokens(tokens - tokens.mean(0), classes, split)


class KeepsOutside(Positioned):
    """What it computes with is in no state dict."""

    drawn = staticmethod(lambda: random.random())

    def __init__(self, geometry: ImageGeometry, width: int = 24) -> None:
        super().__init__(geometry, width)
        self.scales = {"of all": self.drawn()}

    def forward(self, patches, image_of_token, num_images, grid_hw):
        tokens, classes, split = super().forward(patches, image_of_token, num_images, grid_hw)
        return ImageTokens(tokens * self.scales["of all"], classes, split)


class KeepsATensorOutside(KeepsOutside):
    drawn = staticmethod(lambda: torch.rand(()))


class PlaceInRow(ImageAttention):
    """Every third token of a row is seen by nobody, wherever its sample begins."""

    def sees(self, query, key):
        return torch.arange(key.place.shape[-1]) % 3 > 0 if key.place.ndim else key.place >= 0


class Shifted(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + F.pad(x, (0, 0, 1, 0))[:, :-1])


class IgnoresPacking(DecoderKind):
    """The MLP of a token also reads the token before it in the row."""

    def extend(self, language_model):
        for block in blocks_of(decoder_of(language_model)):
            block.mlp.act_fn = Shifted(block.mlp.act_fn)


class OnlyInTraining(DecoderKind):
    """A scale that is not used at all in a batch of text."""

    needs_image_slots = True

    def extend(self, language_model):
        for block in blocks_of(decoder_of(language_model)):
            block.image_scale = nn.Parameter(torch.ones(()))
            block.register_forward_pre_hook(self.scale, with_kwargs=True)

    @staticmethod
    def scale(block, arguments, kwargs):
        slots = kwargs.pop("image_slots", None)
        if slots is None or not len(slots.positions):
            return arguments, kwargs
        hidden = arguments[0].flatten(0, 1).index_add(0, slots.positions, block.image_scale.expand(len(slots.positions), 32))
        return (hidden.view_as(arguments[0]), *arguments[1:]), kwargs


class Twice(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.inner(x))


class UncountedWork(DecoderKind):
    """Every MLP runs twice."""

    def extend(self, language_model):
        for block in blocks_of(decoder_of(language_model)):
            block.mlp.forward = Twice(block.mlp.forward).forward


class KeepsStates(DecoderKind):
    """What every block returned is kept, from one step to the next."""

    def extend(self, language_model):
        for block in blocks_of(decoder_of(language_model)):
            block.register_forward_hook(lambda block, _, output: vars(block).setdefault("returned", []).append(output))


class OtherShapes(nn.Linear):
    """Does more than its shapes tell."""

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__(input_size, output_size)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if y.is_meta else y.sigmoid().exp().sin().exp()


class MeanOfBatch(Brightness):
    def loss(self, images, hidden, teacher):
        return self.error(images, hidden).mean() if images.num_images else 0 * self.head.weight.sum() + 0 * self.head.bias.sum()


class NothingWithoutImages(Brightness):
    def loss(self, images, hidden, teacher):
        return super().loss(images, hidden, teacher) if images.num_images else torch.zeros(())


class ChangesWithEveryCall(nn.Linear):
    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__(input_size, output_size)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * (1 + 0.01 * self.calls * self.training)


BROKEN = [
    (
        "patch_embedding",
        SeesNeighbours,
        r"patch embedding 'own': an image of a batch is embedded otherwise than alone, .*: the diff",
    ),
    ("patch_embedding", KeepsOutside, r"logits are others after saving and loading \(what it computes with must be a param"),
    (
        "patch_embedding",
        KeepsATensorOutside,
        r"the model does not run after loading \(what it computes with must be a parameter",
    ),
    ("image_attention", PlaceInRow, r"a left-padded row are not those of its sample alone: something depends on the place in "),
    (
        "decoder_kind",
        IgnoresPacking,
        r"language_loss of packed rows is not what their samples have alone, .*: the difference is",
    ),
    (
        "decoder_kind",
        UncountedWork,
        r"lit-eve plan counts .* FLOPs in a training step, torch .*: -\d+.\d%, where 2% are allowed",
    ),
    (
        "decoder_kind",
        KeepsStates,
        r"lit-eve plan counts [\d,]+ bytes of activations, a training step keeps [\d,]+: -\d.\d%, where 1% are allowed",
    ),
    ("projector", OtherShapes, r"lit-eve plan counts [\d,]+ bytes of activations, a training step keeps [\d,]+: -\d.\d%"),
    ("supervision", MeanOfBatch, r"brightness_loss of packed rows .* or a loss is not a sum over the images or tokens"),
    ("supervision", NothingWithoutImages, r"own.weight has no gradient in a batch with text alone, not even a gradient of 0"),
    (
        "projector",
        ChangesWithEveryCall,
        r"the gradient of .* with gradient checkpointing is not what it is without: the difference is",
    ),
]


@pytest.mark.parametrize(("key", "part", "message"), BROKEN, ids=[part.__name__ for _, part, _ in BROKEN])
def test_what_breaks_the_contract_is_told(own, key, part, message):
    with pytest.raises(AssertionError, match=message):
        check_variant(own(**{key: part}))


@pytest.mark.slow
def test_what_is_in_no_checkpoint_is_told(own, monkeypatch):
    monkeypatch.setattr("lit_eve.testing.processes._compare_runs", lambda *_: None)
    with pytest.raises(AssertionError, match="after a kill, step 3 is not repeated: .* instead of .*; something is in no ch"):
        check_processes(config_of(own(projector=ChangesWithEveryCall)))


def test_refusals_are_handed_on(own):
    class Drawn(PatchEmbedding):
        def __init__(self, geometry: ImageGeometry) -> None:
            super().__init__(geometry, 16)
            self.scale = torch.rand(16)

    with pytest.raises(ConfigError, match="'own' keeps 'scale' as a plain tensor"):
        check_variant(own(patch_embedding=Drawn))
    with pytest.raises(ConfigError, match="the teacher's grid of .* does not lie on the student's"):
        check_variant({"geometry": ENTRIES["geometry-native"]["geometry"], "supervision": [{"name": "distillation"}]})
    with pytest.raises(ConfigError, match="a composition has no key 'decoder'; it takes: text_config, decoder_kind, "):
        check_variant({"decoder": "llama"})
    refused = check_variant({"text_config": {"model_type": "mixtral", "num_local_experts": 2}})
    assert list(refused) == ["plan"] and "the FLOPs of MixtralModel are not known" in refused["plan"]


def test_every_kind_of_part_is_tried():
    keys = {key for key, kind in EveConfig.__annotations__.items() if "dict" in kind} - {"text_config", "imports"}
    assert keys == REGISTRIES.keys() | {"lora"}  # which is below
