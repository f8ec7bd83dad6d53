"""Masked patches: against plain loops, whatever the batch looks like, and never where the model answers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.losses.masked_patches import MaskRatio, choose_tokens
from lit_eve.models import SUPERVISIONS, EveForConditionalGeneration, Supervision
from lit_eve.models.supervision import check_entries
from lit_eve.models.supervision.draws import draw
from tests.models import tiny
from tests.models.test_no_sync import STAGES, step, to_meta
from tests.models.test_supervision import ALIGNMENT, NEXT, hidden_states

MASKED = {"name": "masked_patches", "ratio": 0.4}
SEEDS = torch.tensor([11, 2**62 + 3, 12, 5])


def seeded(samples):
    """Samples whose images have seeds of their own."""
    seeds = iter(SEEDS.split(1))
    for sample in samples:
        numbers = [next(seeds) for _ in sample["image_grid_hw"]]
        sample["image_seeds"] = torch.cat([torch.empty(0, dtype=torch.long), *numbers])
    return samples


def batch_of(make, rows, **kwargs):
    flat = [sample for row in rows for sample in (row if isinstance(row, list) else [row])]
    return make(rows, **kwargs) | {"image_seeds": torch.cat([sample["image_seeds"] for sample in flat])}


def masked_model(entry=MASKED, **kwargs) -> EveForConditionalGeneration:
    model = tiny.model(supervision=[entry], **kwargs)
    model.attach_supervision()
    for parameter in model.masked_patches.parameters():
        nn.init.normal_(parameter, std=0.15)
    return model


def masks_of(model, sample) -> list[torch.Tensor]:
    """Which tokens of each image are masked, as a plain loop finds them."""
    masks = []
    for seed, grid in zip(sample["image_seeds"], model.geometry.token_grid_of(sample["image_grid_hw"]), strict=True):
        tokens = int(grid.prod())
        drawn = [(float(draw(seed, torch.tensor(place))), place) for place in range(tokens)]
        chosen = [place for _, place in sorted(drawn)[: int(0.4 * tokens)]]
        masks.append(torch.tensor([place in chosen for place in range(tokens)]))
    return masks


def test_numbers_are_uniform_and_the_same_for_the_same_keys():
    seeds = torch.arange(100)[:, None] * 2**40
    numbers = draw(seeds, torch.arange(300))
    assert numbers.shape == (100, 300) and numbers.min() >= 0 and numbers.max() < 1
    assert torch.equal(draw(seeds[7, 0], torch.tensor(5)), numbers[7, 5]) and len(numbers.unique()) > 29900
    histogram = torch.histc(numbers, bins=10, min=0, max=1)
    assert (histogram - 3000).abs().max() < 300
    together = torch.corrcoef(torch.stack([numbers[:-1].flatten(), numbers[1:].flatten(), numbers[:-1].roll(1, 1).flatten()]))
    assert (together - torch.eye(3)).abs().max() < 0.03


@pytest.mark.parametrize("ratio", [(0.3, 0.3), (0.7, 0.7), (-0.7, 0.3), (0.1, 0.9)])
def test_so_many_tokens_are_masked(ratio):
    tokens = torch.arange(1, 400)
    random = draw(tokens)
    numbers = MaskRatio(*ratio).numbers(tokens, random)
    low, high = ratio
    exact = (low + (high - low) * random.double()).clamp(min=0) * tokens
    assert ((numbers - exact).double() <= 1e-3).all() and ((numbers - exact) > -1 - 1e-3).all(), "rounded down"
    if low == high:
        assert numbers[9] == int(10 * low) and numbers[99] == int(100 * low)
    if low < 0:
        assert (numbers[20:] == 0).float().mean() == pytest.approx(0.7, abs=0.1), "as often as the official code masks nothing"
    offset = torch.cat([torch.arange(n) for n in tokens])
    image = torch.repeat_interleave(torch.arange(len(tokens)), tokens)
    masked = choose_tokens(draw(image, offset), image, offset, numbers)
    assert torch.equal(torch.zeros_like(tokens).index_add_(0, image, masked.long()), numbers)
    assert int(numbers.sum()) <= MaskRatio(*ratio).at_most(len(image))


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_the_loss_is_what_a_loop_says(attention):
    model = masked_model(MASKED | {"weight": 0.5}, image_attention={"name": attention})
    samples = seeded(tiny.samples(model, [2, 0, 1]))
    mean, std = (torch.tensor(x)[:, None] for x in (model.config.image_mean, model.config.image_std))
    token, head, total = model.masked_patches.mask_token, model.masked_patches.pixels, 0.0
    embed = model.embed_images
    for sample in samples:
        if not len(sample["image_grid_hw"]):
            continue
        masks = masks_of(model, sample)
        masked = torch.cat(masks)

        def with_masks(*args, masked=masked):
            tokens = embed(*args)
            replaced = torch.stack([token if hide else row for hide, row in zip(masked, tokens.tokens, strict=True)])
            return tokens._replace(tokens=replaced)

        with model.supervised_by():
            model.embed_images = with_masks
            states = hidden_states(model, {key: x for key, x in sample.items() if key != "image_seeds"})[-1]
            model.embed_images = embed
        pixels = (sample["pixel_values"].float().unflatten(1, (3, -1)) / 255 - mean) / std
        windows = pixels.flatten(1).view(len(states), -1)
        start = 0
        for mask in masks:
            errors = []
            for place in mask.nonzero().flatten().tolist():
                target = windows[start + place]
                target = (target - target.mean()) / (target.var() + 1e-6) ** 0.5
                errors.append((head(states[start + place]) - target).square().mean())
            total = total + (torch.stack(errors).mean() if errors else 0.0)
            start += len(mask)
    output = model(**batch_of(tiny.packed, [samples[:2], samples[2:]]))
    assert_close(output.terms["masked_patches_loss"].total, total, rtol=1e-4, atol=1e-5)
    assert_close(output.loss, output.language_loss + 0.5 * total / 3, rtol=1e-4, atol=1e-5)


def test_a_tap_inside_the_decoder_and_no_prediction():
    inner, none = masked_model(MASKED | {"tap": 2}), masked_model(MASKED | {"predict": False})
    batch = batch_of(tiny.packed, [seeded(tiny.samples(inner, [1, 1]))])
    (output,), gradients = tiny.gradients(inner, batch)
    assert output.terms["masked_patches_loss"].total > 0
    (only,), of_text = tiny.gradients(none, batch)
    with none.supervised_by():
        assert only.language_loss != none(**batch).language_loss, "the images are masked"
    assert only.loss == only.language_loss and only.terms["masked_patches_loss"].total == 0
    assert of_text["masked_patches.mask_token"].any() and gradients["masked_patches.mask_token"].any()
    assert list(none.masked_patches.state_dict()) == ["mask_token"]


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("entry", [MASKED, MASKED | {"ratio": [-0.5, 0.6]}, MASKED | {"ratio": [0.2, 0.9], "tap": 3}], ids=str)
def test_packed_samples_are_as_alone(entry, attention):
    model = masked_model(entry, image_attention={"name": attention})
    samples = seeded(tiny.samples(model, [2, 0, 1, 1]))
    counts = {"num_targets": 50, "num_images": 4}
    alone, expected = tiny.gradients(model, *(batch_of(tiny.padded, [sample]) for sample in samples), **counts)
    (packed,), gradients = tiny.gradients(model, batch_of(tiny.packed, [samples[:2], samples[2:]]), **counts)
    for name, term in packed.terms.items():
        assert_close(term.total, sum(output.terms[name].total for output in alone), rtol=1e-4, atol=1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5, msg=name)
        assert gradient.any() or not name.startswith("masked_patches."), name


def test_class_and_split_tokens_stay_and_others_only_where_they_are_masked():
    model = masked_model()
    (sample,) = seeded(tiny.samples(model, [2]))
    batch, seen = batch_of(tiny.padded, [sample]), []
    model.get_decoder().layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    plain = model.embed_inputs(*(batch[key] for key in ("input_ids", "pixel_values", "image_grid_hw")))[0]
    model(**batch)
    changed = (seen[0] != plain).any(1)
    slots, places = (sample["input_ids"] == model.config.image_token_id).nonzero().flatten().tolist(), []
    for rows, columns in model.geometry.token_grid_of(sample["image_grid_hw"]).tolist():
        slots.pop(0)
        for _ in range(rows):
            places += [slots.pop(0) for _ in range(columns)]
            slots.pop(0)
    expected = torch.zeros_like(changed)
    expected[places] = torch.cat(masks_of(model, sample))
    assert torch.equal(changed, expected) and changed.any()
    assert torch.equal(seen[0][changed], model.masked_patches.mask_token.expand(int(changed.sum()), -1))


def test_nothing_is_masked_where_the_model_answers():
    model, plain = masked_model().eval(), tiny.model().eval()
    (sample,) = seeded(tiny.samples(model, [1]))
    batch = batch_of(tiny.padded, [sample])
    prompt = {key: batch[key] for key in ("input_ids", "attention_mask", "pixel_values", "image_grid_hw")}
    with torch.no_grad():
        assert torch.equal(model(**prompt).logits, plain(**prompt).logits)
        answers = [one.generate(**prompt, max_new_tokens=3, do_sample=False) for one in (model, plain)]
        assert torch.equal(*answers)
        with model.supervised_by():
            assert torch.equal(model(**batch).loss, plain(**batch).loss)
        off = masked_model(MASKED | {"weight": [[0.0, 1.0], [0.5, 0.0]]}).eval()
        assert torch.equal(off(**batch).loss, plain(**batch).loss), "the end of its schedule is the end of masks"
        assert off(**batch, progress=0.25).loss != plain(**batch).loss


def test_images_too_small_to_be_masked_and_batches_without_images():
    model = masked_model(MASKED | {"ratio": 0.01})
    for images in ([1], [0, 0]):
        (output,), gradients = tiny.gradients(model, batch_of(tiny.packed, [seeded(tiny.samples(model, images))]))
        assert output.terms["masked_patches_loss"].total == 0
        heads = [name for name, _ in model.named_parameters() if name.startswith("masked_patches.")]
        assert len(heads) == 3 and not any(gradients[name].any() for name in heads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_no_step_waits_for_the_device(dtype):
    model = masked_model(MASKED | {"ratio": [-0.7, 0.3]})
    rows = [tiny.samples(model, [1, 0, 2]), tiny.samples(model, [0, 1], 1)]
    batch = to_meta(batch_of(tiny.packed, [seeded(row) for row in rows]))
    model.to("meta", dtype)
    calls = step(model, STAGES["pretrain"], batch | {"num_targets": torch.empty((), device="meta"), "num_images": 4})
    assert not calls.keys() & {"_local_scalar_dense", "nonzero", "masked_select", "unique"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratio": 0}, "ratio must be a number between 0 and 1, .* got 0"),
        ({"ratio": 1.0}, "ratio must be a number between 0 and 1"),
        ({"ratio": [0.5, 0.2]}, r"the larger one last and above 0, got \[0.5, 0.2\]"),
        ({"ratio": [-0.5, 0.0]}, "above 0"),
        ({"ratio": [0.1, 0.2, 0.3]}, "ratio must be"),
        ({"ratio": "half"}, "ratio must be"),
        ({"tap": 0}, "tap must be a hidden state from 1 on"),
        ({"tap": 1.5}, "tap must be a hidden state from 1 on"),
        ({"predict": 1}, "predict must be true or false"),
        ({"share": 0.3}, "supervision 'masked_patches' has no argument 'share'"),
    ],
)
def test_impossible_arguments(arguments, message):
    with pytest.raises(ConfigError, match=message):
        check_entries([{"name": "masked_patches"} | arguments])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="reads hidden state 5 of the decoder, which has 0 to 4"):
        tiny.model(supervision=[MASKED | {"tap": 5}]).attach_supervision()
    model = masked_model()
    batch = tiny.packed([tiny.samples(model, [2])])
    with pytest.raises(LitEveError, match="draws random numbers for 2 images, but image_seeds has none"):
        model(**batch)
    with pytest.raises(LitEveError, match="but image_seeds has 1"):
        model(**batch, image_seeds=SEEDS[:1])


def test_others_see_the_masked_tokens_too(monkeypatch):
    """One after the other changes tokens, and all losses are those of what the decoder read."""

    class Doubled(Supervision):
        term = "doubled_loss"

        def __init__(self, hidden_size: int, rows: int = 0) -> None:
            self.head, self.rows, self.taps = nn.Linear(hidden_size, 1), rows, (0,)

        def change_tokens(self, images, tokens):
            return 2 * tokens[self.rows :]

        def positions(self, images):
            return images.layout.token_position

        def loss(self, images, hidden, teacher):
            self.seen = hidden[0]
            return self.head(hidden[0]).sum()

    monkeypatch.setitem(SUPERVISIONS._variants, "doubled", Doubled)
    model = tiny.model(supervision=[MASKED, {"name": "doubled"}, NEXT])
    model.attach_supervision()
    (sample,) = seeded(tiny.samples(model, [1]))
    model(**batch_of(tiny.padded, [sample]))
    (mask,) = masks_of(model, sample)
    assert_close(model.supervisions["doubled"].seen[mask], 2 * model.masked_patches.mask_token.expand(int(mask.sum()), -1))
    wrong = tiny.model(supervision=[{"name": "doubled", "rows": 1}])
    wrong.attach_supervision()
    with pytest.raises(ConfigError, match="supervision Doubled changed image tokens of the shape .* the shape must stay"):
        wrong(**batch_of(tiny.padded, [sample]))


def test_beside_a_teacher():
    model = tiny.model(supervision=[MASKED, ALIGNMENT])
    model.attach_supervision(tiny.teacher())
    batch = batch_of(tiny.packed, [seeded(tiny.samples(model, [1, 1]))])
    (output,), _ = tiny.gradients(model, batch)
    assert output.terms.keys() >= {"masked_patches_loss", "alignment_loss"}
