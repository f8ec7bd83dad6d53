"""What every patch embedding must do; a new one is a new row of VARIANTS."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from lit_eve.errors import ConfigError
from lit_eve.models import (
    PATCH_EMBEDDINGS,
    EveForConditionalGeneration,
    ImageTokens,
    LinearPatchEmbedding,
    PatchEmbedding,
)
from lit_eve.testing import check_patch_embedding
from tests.models import tiny

VARIANTS = [
    {"name": "eve_v1", "width": 16, "num_heads": 4},
    {"name": "eve_v1", "width": 16, "num_heads": 4, "attend_windows": False},
    {"name": "eve_v1", "width": 16, "num_heads": 4, "attend_images": False},
    {"name": "eve_v2", "patch_width": 16},
    {"name": "gemma4_unified", "width": 16, "positions": 16},
    {"name": "linear", "width": 16},
    {"name": "linear", "width": 16, "bias": False},
    {"name": "mono_internvl", "patch_width": 16, "positions": 8},
    {"name": "neo", "patch_width": 16},
    {"name": "vora", "patch_width": 16, "positions": 4},
]

off = lambda spec: [key for key in spec if spec[key] is False]  # noqa: E731
variants = pytest.mark.parametrize("spec", VARIANTS, ids=lambda spec: "-".join([spec["name"], *off(spec)]))


def test_every_variant_has_a_row():
    shipped = {name for name in PATCH_EMBEDDINGS if PATCH_EMBEDDINGS[name].__module__.startswith("lit_eve.")}
    assert shipped == {spec["name"] for spec in VARIANTS} | {"vision_tower", "llm_tower"}  # which have files of their own


@variants
def test_keeps_the_contract(spec):
    check_patch_embedding(spec)


@variants
def test_trains(spec):
    model = tiny.model(patch_embedding=spec)
    model(**tiny.packed([tiny.samples(model, [2, 0, 1])])).loss.backward()
    for name, parameter in model.patch_embedding.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@variants
def test_an_image_does_not_see_the_others_of_its_batch(spec):
    model = tiny.model(patch_embedding=spec).eval()
    rows = tiny.samples(model, [1, 2])
    together = model(**without_teacher(tiny.padded(rows))).logits
    for index, row in enumerate(rows):
        alone = model(**without_teacher(tiny.padded([row]))).logits[0]
        assert_close(together[index, : len(alone)], alone, rtol=0, atol=1e-4)


@variants
def test_is_saved_by_name_and_reloaded(spec, tmp_path):
    model = tiny.model(patch_embedding=spec).eval()
    model.save_pretrained(tmp_path)
    reloaded = EveForConditionalGeneration.from_pretrained(tmp_path)
    assert reloaded.config.patch_embedding == spec
    batch = without_teacher(tiny.padded(tiny.samples(model, [1])))
    assert_close(reloaded(**batch).logits, model(**batch).logits, rtol=0, atol=1e-6)


def without_teacher(batch):
    return {key: value for key, value in batch.items() if key not in ("teacher_pixel_values", "labels")}


# ---- what breaks the contract


class Base(LinearPatchEmbedding):
    """Returns what ``change`` makes of the tokens, classes and split token."""

    def __init__(self, geometry, width=16):
        super().__init__(geometry, width)
        if type(self).more is not None:
            type(self).more(self)

    more = None

    def forward(self, patches, image_of_token, num_images, grid_hw):
        return self.change(super().forward(patches, image_of_token, num_images, grid_hw), image_of_token)

    def change(self, found, image_of_token):
        return found


def unreset(self):
    self.scale = torch.nn.Parameter(torch.ones(16))


def redrawn(self):
    self.register_buffer("noise", torch.randn(16), persistent=False)


def unsaved(self):
    self.noise = torch.randn(16)


BROKEN = {
    "no_classes": ("returned classes of shape None", None, lambda self, x, image: x._replace(classes=None)),
    "one_more": (
        "returned tokens of shape",
        None,
        lambda self, x, image: x._replace(tokens=torch.cat([x.tokens, x.tokens[:1]])),
    ),
    "one_class": (
        "returned classes of shape",
        None,
        lambda self, x, image: x._replace(classes=None if x.classes is None else x.classes[:1]),
    ),
    "no_tuple": ("must return ImageTokens", None, lambda self, x, image: x.tokens),
    "flat_split": (
        "returned split of shape",
        None,
        lambda self, x, image: x._replace(split=None if x.split is None else x.split[None]),
    ),
    "sees_others": ("it sees the others", None, lambda self, x, image: x._replace(tokens=x.tokens - x.tokens.mean(0))),
    "unused": (
        "split_embedding gets no gradient",
        None,
        lambda self, x, image: x._replace(split=None if x.split is None else x.split.detach()),
    ),
    "unreset": (
        "scale is initialised by no reset_parameters",
        unreset,
        lambda self, x, image: x._replace(tokens=x.tokens * self.scale),
    ),
    "redrawn": (
        "draws 'noise' at random",
        redrawn,
        lambda self, x, image: x._replace(tokens=x.tokens + self.noise),
    ),
    "unsaved": (
        "keeps 'noise' as a plain tensor",
        unsaved,
        lambda self, x, image: x._replace(tokens=x.tokens + self.noise),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_the_contract_is_named(name, monkeypatch):
    message, more, change = BROKEN[name]
    monkeypatch.setitem(PATCH_EMBEDDINGS._variants, name, type(name, (Base,), {"more": more, "change": change}))
    with pytest.raises((AssertionError, ConfigError), match=message):
        check_patch_embedding({"name": name})


@pytest.mark.parametrize("name", ["no_classes", "one_more", "no_tuple"])
def test_a_model_says_what_is_wrong_with_the_shapes(name, monkeypatch):
    message, more, change = BROKEN[name]
    monkeypatch.setitem(PATCH_EMBEDDINGS._variants, name, type(name, (Base,), {"more": more, "change": change}))
    model = tiny.model(patch_embedding={"name": name})
    with pytest.raises(ConfigError, match=message):
        model(**tiny.packed([tiny.samples(model, [2, 0, 1])]))


def test_a_projector_and_an_aligner_of_another_shape(monkeypatch):
    model = tiny.model(with_teacher=True)
    batch = tiny.packed([tiny.samples(model, [1])])
    right, model.projector = model.projector, torch.nn.Linear(16, 31)
    with pytest.raises(ConfigError, match=r"projector 'mlp_gelu' returned the shape \(\d+, 31\)"):
        model(**batch)
    model.projector = right
    monkeypatch.setattr(type(model.aligner), "forward", lambda self, features: features[0][:1])  # would be broadcast
    with pytest.raises(ConfigError, match=r"aligner 'layerwise' returned the shape \(1, 32\)"):
        model(**batch)


class Neighbours(PatchEmbedding):
    """A 3 x 3 convolution over each image's tokens, by index arithmetic: what takes part lies in the image's own grid."""

    def __init__(self, geometry, width=16):
        super().__init__(geometry, width)
        self.weights = torch.nn.ModuleList(torch.nn.Linear(self.window * geometry.patch_dim, width) for _ in range(9))

    def forward(self, patches, image_of_token, num_images, grid_hw):
        windows = patches.unflatten(0, (-1, self.window)).flatten(1)  # (Q, window * 3 * p * p)
        count = grid_hw.prod(1)
        start = (count.cumsum(0) - count)[image_of_token]
        rows, columns = grid_hw[image_of_token].unbind(1)
        place = torch.arange(len(windows), device=windows.device) - start
        row, column = place // columns, place % columns
        tokens = 0
        for index, weight in enumerate(self.weights):
            y, x = row + index // 3 - 1, column + index % 3 - 1
            inside = (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
            neighbour = (start + y * columns + x).where(inside, start)
            tokens = tokens + weight(windows[neighbour]) * inside[:, None]
        classes = None if self.class_embedding is None else self.class_embedding.expand(num_images, -1)
        return ImageTokens(tokens, classes, self.split_embedding)


def test_a_variant_that_asks_for_the_grid_gets_it(monkeypatch):
    monkeypatch.setitem(PATCH_EMBEDDINGS._variants, "neighbours", Neighbours)
    check_patch_embedding({"name": "neighbours"})
    model = tiny.model(patch_embedding={"name": "neighbours"}).eval()
    grid = torch.tensor([[3, 4], [2, 2]])
    patches = torch.randn(16 * 4, model.geometry.patch_dim)
    image = torch.tensor([0] * 12 + [1] * 4)
    tokens = model.patch_embedding(patches, image, 2, grid).tokens
    kernel = torch.stack([layer.weight for layer in model.patch_embedding.weights], -1).unflatten(-1, (3, 3))
    bias = torch.stack([layer.bias for layer in model.patch_embedding.weights])
    windows = patches.unflatten(0, (-1, 4)).flatten(1)[:12].T.unflatten(1, (3, 4))
    ones = torch.nn.functional.conv2d(torch.ones(1, 1, 3, 4), torch.eye(9).view(9, 1, 3, 3), padding=1)[0]
    expected = torch.nn.functional.conv2d(windows[None], kernel, padding=1)[0] + torch.einsum("khw,ke->ehw", ones, bias)
    assert_close(tokens[:12], expected.flatten(1).T, rtol=0, atol=1e-4)
    assert model(**tiny.packed([tiny.samples(model, [2, 0, 1])])).loss.isfinite()
