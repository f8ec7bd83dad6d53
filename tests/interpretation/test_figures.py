from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lit_eve.errors import LitEveError
from lit_eve.interpretation import AblatedHeads, heads_figure, maps_figure
from tests.tiny_model import scene_image


@pytest.mark.parametrize("size", [(64, 64), (300, 60), (50, 320)])
def test_maps_lie_on_the_whole_image_with_one_scale_per_kind(size: tuple[int, int], tmp_path) -> None:
    image = scene_image(0).resize(size)
    heat = torch.rand(2, 3, 5)
    figure = maps_figure(image, {"attention": heat, "blanked": heat - 0.5}, [" red", "circle"])
    figure.savefig(tmp_path / "maps.png", dpi=30)
    assert min(Image.open(tmp_path / "maps.png").size) > 30
    axes = np.array(figure.axes).reshape(3, 3)  # the last row are the scales
    assert [ax.get_title("left") for ax in axes[0]] == ["image", "attention", "blanked"]
    assert [ax.get_ylabel() for ax in axes[:2, 0]] == ["red", "circle"]
    assert np.array_equal(axes[1, 0].images[0].get_array(), np.asarray(image))
    for row in range(2):
        for column, (kind, low) in enumerate([(heat, 0.0), (heat - 0.5, -(heat - 0.5).abs().max().item())], 1):
            grey, drawn = axes[row, column].images
            assert np.array_equal(grey.get_array(), np.asarray(image.convert("L"))) and drawn.origin == "upper"
            assert np.array_equal(drawn.get_array(), kind[row].numpy())
            assert list(drawn.get_extent()) == [-0.5, size[0] - 0.5, size[1] - 0.5, -0.5]  # where imshow puts pixels
            assert drawn.get_clim() == pytest.approx((low, kind.abs().max().item()))


def test_maps_that_are_not_those_of_the_tokens_are_refused() -> None:
    with pytest.raises(LitEveError, match=r"the maps 'rollout' have the shape \(1, 2, 2\), but there are 2 tokens"):
        maps_figure(scene_image(0), {"rollout": torch.zeros(1, 2, 2)}, ["a", "b"])
    with pytest.raises(LitEveError, match="there is no map to draw"):
        maps_figure(scene_image(0), {}, ["a"])
    maps_figure(scene_image(0), {"rollout": torch.zeros(1, 2, 2)}, ["a"])  # nothing is bright


def test_heads_are_drawn_from_the_first_layer_up() -> None:
    ablated = AblatedHeads([" red", "circle"], torch.zeros(2), torch.randn(2, 2, 3), layers=[0, 5], heads=[1, 2, 3])
    ax, bar = heads_figure(ablated, 1).axes
    (drawn,) = ax.images
    assert drawn.origin == "lower" and np.array_equal(drawn.get_array(), -ablated.ablated[1].numpy())
    limit = ablated.ablated[1].abs().max().item()
    assert drawn.get_clim() == pytest.approx((-limit, limit)) and bar.get_ylabel() == "log-probability (nats)"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "5"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "3"]
    assert ax.get_title("left") == "what 'circle' loses without each head"
    assert "the whole answer" in heads_figure(ablated, probability=True).axes[0].get_title("left")
