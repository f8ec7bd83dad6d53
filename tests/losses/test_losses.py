"""Both losses against straightforward loops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from lit_eve.errors import ConfigError
from lit_eve.losses import LayerwiseAligner, next_token, next_token_loss, patch_alignment_loss, target_positions_of
from lit_eve.models.splice import ImageLayout, TeacherCells
from lit_eve.planning.memory import LiveBytes
from lit_eve.processing import TeacherGrid
from tests.models import tiny


def test_target_positions_do_not_cross_rows():
    labels = torch.tensor([[-100, 7, -100, 8], [9, -100, 6, -100]])
    assert target_positions_of(labels).tolist() == [0, 2, 5]  # the 9 that starts the second row has no predecessor


@pytest.mark.parametrize("chunk", [3, 100])
def test_chunks_do_not_change_the_loss_or_its_gradients(monkeypatch, chunk):
    monkeypatch.setattr(next_token, "CHUNK_TOKENS", chunk)
    hidden, head = torch.randn(10, 8, requires_grad=True), torch.nn.Linear(8, 20)
    targets = torch.randint(20, (10,))
    ours = next_token_loss(hidden, targets, head, count_correct=True)
    grads = torch.autograd.grad(ours.total, [hidden, head.weight])
    logits = head(hidden)
    naive = F.cross_entropy(logits, targets, reduction="sum")
    assert_close(ours.total, naive)
    assert ours.num_correct == (logits.argmax(-1) == targets).sum()
    for ours_, naive_ in zip(grads, torch.autograd.grad(naive, [hidden, head.weight]), strict=True):
        assert_close(ours_, naive_)


def test_no_more_logits_exist_than_those_of_a_chunk():
    """In both passes, on the meta device: 16 chunks at a vocabulary of 128k take some copies of one chunk, not of all."""
    head = torch.nn.Linear(64, 128_000, device="meta", dtype=torch.bfloat16).requires_grad_(False)
    tokens = 16 * next_token.CHUNK_TOKENS
    hidden = torch.empty(tokens, 64, device="meta", dtype=torch.bfloat16, requires_grad=True)
    with LiveBytes([hidden, *head.parameters()]) as live:
        next_token_loss(hidden, torch.empty(tokens, dtype=torch.long, device="meta"), head).total.backward()
    chunk = next_token.CHUNK_TOKENS * 128_000 * 4  # float32
    assert chunk < live.peak < 4 * chunk


def test_alignment_is_a_mean_over_tokens_then_a_sum_over_images():
    predictions, targets = torch.randn(7, 4), torch.randn(7, 4)
    image = torch.tensor([0, 0, 0, 0, 1, 2, 2])
    loss = patch_alignment_loss(predictions, targets, image, 3)
    per_image = [1 - F.cosine_similarity(predictions[image == i], targets[image == i]).mean() for i in range(3)]
    assert_close(loss, sum(per_image))


GRID = TeacherGrid(64, 8)


@pytest.mark.parametrize("geometry", [tiny.GEOMETRY, tiny.HD_GEOMETRY], ids=["672", "hd"])
def test_teacher_cells_pool_the_tokens_that_they_cover(geometry):
    """Against upstream's way: cut each image out of the sequence, drop class and split tokens, avg_pool2d."""
    model = tiny.model(geometry=geometry)
    batch = tiny.packed([tiny.samples(model, [1, 2]), tiny.samples(model, [1, 0], seed=1)])
    hidden = torch.randn(*batch["input_ids"].shape, 6)
    layout = ImageLayout.of(
        batch["input_ids"], batch["image_grid_hw"], len(batch["pixel_values"]), model.geometry, model.config.image_token_id
    )
    cells = TeacherCells.of(layout, batch["image_grid_hw"], model.geometry, GRID)
    ours = hidden.flatten(0, 1)[cells.positions].mean(1)

    slots, start, k = hidden.flatten(0, 1)[layout.is_image], 0, GRID.tokens_per_patch(model.geometry)
    expected, indices = [], []
    for image, (rows, columns) in enumerate((batch["image_grid_hw"] // 2).tolist()):
        grid = slots[start + 1 : start + 1 + rows * (columns + 1)].view(rows, columns + 1, -1)[:, :-1]
        expected.append(F.avg_pool2d(grid.permute(2, 0, 1), k).flatten(1).T)
        start += 1 + rows * (columns + 1)
        canvas = torch.zeros(8, 8, dtype=torch.bool)
        top, left = (8 - rows // k) // 2, (8 - columns // k) // 2
        canvas[top : top + rows // k, left : left + columns // k] = True
        indices.append(canvas.flatten().nonzero().flatten() + 64 * image)
    assert_close(ours, torch.cat(expected))
    assert_close(cells.teacher_index, torch.cat(indices))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"layer_interval": 9}, "single tap"), ({"layer_interval": 1, "num_heads": 5}, "does not divide")],
)
def test_impossible_aligners(arguments, message):
    with pytest.raises(ConfigError, match=message):
        LayerwiseAligner(hidden_size=8, num_layers=4, teacher_width=16, **arguments)


@pytest.mark.parametrize(("layers", "taps"), [(32, (32, 28, 24, 20, 16, 12, 8, 4, 0)), (6, (6, 2))])
def test_taps(layers, taps):
    assert LayerwiseAligner(hidden_size=8, num_layers=layers, teacher_width=16).taps == taps


def test_a_teacher_sees_its_own_colours_whatever_the_students_are():
    seen = []
    for colours in ({}, {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}):
        model = tiny.model(with_teacher=True, **colours).eval()
        model.teacher.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        model(**tiny.packed([tiny.samples(model, [1])]))
    assert torch.equal(*seen)
