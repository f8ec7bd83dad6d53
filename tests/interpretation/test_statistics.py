from __future__ import annotations

import math

import pytest
import torch

from lit_eve.errors import LitEveError
from lit_eve.interpretation.statistics import attention_statistics, head_statistics_figure, token_statistics_figure
from lit_eve.processing import Sample
from tests.tiny_model import make_tiny, scene_image


def sample(key: str, *images, question: str = "where is the red circle?") -> Sample:
    asked = {"role": "user", "content": "<image>" * len(images) + question}
    return Sample(key, [asked, {"role": "assistant", "content": "row-1"}, {"role": "user", "content": "and now?"}], images)


SAMPLES = [
    sample("wide", scene_image(0)),
    sample("text"),
    sample("two", scene_image(3), scene_image(5), question="what is it?"),
    sample("broken", b"no image"),
    Sample("silent", [{"role": "user", "content": "<image>"}], [scene_image(1)]),
    sample("last", scene_image(2), question="how many shapes are there?"),
]


@torch.no_grad()
def reference(model, processor, one: Sample, tokens: int) -> list[tuple[list[list[tuple[float, float]]], int, int]]:
    """For each answer token: share and entropy of each layer and head from eager attention, tokens seen, image slots."""
    inputs = processor(conversation=[one.conversation[:1]], images=[list(one.images)])
    written = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    special = set(processor.tokenizer.all_special_ids)
    ids = torch.cat([inputs["input_ids"], torch.tensor([written])], 1)
    embeds = model.embed_inputs(ids, inputs["pixel_values"], inputs["image_grid_hw"])
    before = model.config.text_config._attn_implementation
    model.language_model.set_attn_implementation("eager")
    attentions = model.get_decoder()(inputs_embeds=embeds, output_attentions=True).attentions
    model.language_model.set_attn_implementation(before)
    slots = [i for i, id in enumerate(ids[0].tolist()) if id == model.config.image_token_id]
    result = []
    for step in [step for step, id in enumerate(written) if id not in special] or [0]:
        position = inputs["input_ids"].shape[1] - 1 + step
        numbers = [[] for _ in attentions]
        for layer, weights in enumerate(attentions):
            for head in weights[0]:
                row = head[position].tolist()
                entropy = -sum(p * math.log(p) for p in row if p > 0)
                numbers[layer].append((sum(row[slot] for slot in slots), entropy))
        result.append((numbers, position + 1, len(slots)))
    return result


@pytest.mark.parametrize("decoder", ["llama", "qwen3"])
def test_statistics_are_those_of_eager_attention(decoder: str, capsys: pytest.CaptureFixture) -> None:
    model, processor = make_tiny(decoder)
    found = attention_statistics(model, processor, SAMPLES, max_new_tokens=4)
    assert "answering" in capsys.readouterr().out
    expected = [reference(model, processor, SAMPLES[index], 4) for index in (0, 2, 5)]
    longest = max(map(len, expected))
    assert found.image_share.shape == found.entropy.shape == found.relative_entropy.shape == (3, longest, 3, 4)
    for s, answer in enumerate(expected):
        for a, (numbers, seen, slots) in enumerate(answer):
            assert found.tokens[s, a] == seen and found.image_slots[s] == slots
            assert found.uniform_share[s, a].item() == pytest.approx(slots / seen)
            for layer in range(3):
                for head in range(4):
                    share, entropy = numbers[layer][head]
                    assert found.image_share[s, a, layer, head].item() == pytest.approx(share, abs=1e-4)
                    assert found.entropy[s, a, layer, head].item() == pytest.approx(entropy, abs=1e-3)
                    relative = found.relative_entropy[s, a, layer, head].item()
                    assert relative == pytest.approx(entropy / math.log(seen), abs=1e-3)
        for values in (found.image_share, found.entropy, found.tokens, found.uniform_share):
            assert values[s, len(answer) :].isnan().all()
    assert [reason.split(":")[0] for reason in found.skipped] == ["text", "broken", "silent"]


def test_layers_and_heads_can_be_chosen_and_figures_show_the_means(capsys: pytest.CaptureFixture) -> None:
    model, processor = make_tiny()
    whole = attention_statistics(model, processor, SAMPLES, max_new_tokens=4, progress=None)
    part = attention_statistics(model, processor, SAMPLES, layers=[-1], heads=[2, 0], max_new_tokens=4, progress=None)
    assert capsys.readouterr().out == ""
    assert part.layers == [2] and part.heads == [2, 0]
    torch.testing.assert_close(part.image_share, whole.image_share[:, :, 2:, [2, 0]], equal_nan=True)

    def mean(values: torch.Tensor) -> float:
        real = [value for value in values.flatten().tolist() if not math.isnan(value)]
        return sum(real) / len(real)

    share, entropy = (axis.get_images()[0].get_array() for axis in head_statistics_figure(whole).axes[:2])
    assert share.shape == entropy.shape == (3, 4)
    assert share[1, 2] == pytest.approx(mean(whole.image_share[:, :, 1, 2]), abs=1e-5)
    assert entropy[2, 3] == pytest.approx(mean(whole.relative_entropy[:, :, 2, 3]), abs=1e-5)
    upper, lower = token_statistics_figure(whole).axes
    lines = [line.get_ydata() for line in upper.lines]
    assert len(lines) == 5  # three layers, their mean, all tokens alike
    for token in range(whole.tokens.shape[1]):
        assert lines[1][token] == pytest.approx(mean(whole.image_share[:, token, 1]), abs=1e-5)
        assert lines[3][token] == pytest.approx(mean(whole.image_share[:, token]), abs=1e-5)
        assert lines[4][token] == pytest.approx(mean(whole.uniform_share[:, token]), abs=1e-5)
        assert lower.patches[token].get_height() == whole.tokens[:, token].isfinite().sum()
    for draw in (head_statistics_figure, token_statistics_figure):
        draw(part)


def test_what_gives_no_statistics_is_refused() -> None:
    model, processor = make_tiny()
    with pytest.raises(LitEveError, match="no sample can be used: text: the question has no image"):
        attention_statistics(model, processor, [SAMPLES[1]], progress=None)
    with pytest.raises(LitEveError, match="no sample can be used: there is none"):
        attention_statistics(model, processor, [], progress=None)
    for choice in ({"layers": [3]}, {"heads": [-5]}):
        with pytest.raises(LitEveError, match=r"there is no (layer 3|head -5)"):
            attention_statistics(model, processor, SAMPLES[:1], progress=None, **choice)
