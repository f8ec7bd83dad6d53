from __future__ import annotations

import pytest
import torch

from lit_eve.errors import LitEveError
from lit_eve.interpretation.lens import lens_figure, logit_lens
from tests.tiny_model import make_tiny, scene_image

IMAGES = [scene_image(0), scene_image(3)]


def make_inputs(model, processor, images=IMAGES) -> tuple[dict[str, torch.Tensor], list[list[list[int]]]]:
    """What the model is given, and the position of each image token: [image][row][column]."""
    inputs = dict(processor(conversation=[{"role": "user", "content": "<image>" * len(images)}], images=list(images)))
    slots = (inputs["input_ids"][0] == model.config.image_token_id).nonzero().flatten().tolist()
    places = []
    for rows, columns in (inputs["image_grid_hw"] // 2).tolist():
        slots.pop(0)  # the class token
        places.append([[slots.pop(0) for _ in range(columns + 1)][:-1] for _ in range(rows)])  # a split token ends a row
    assert not slots
    return inputs, places


@pytest.mark.parametrize("decoder", ["llama", "qwen3", "gemma2", "cohere", "gpt2", "opt"])  # capped, scaled, other norms
@torch.no_grad()
def test_the_last_state_gives_the_models_own_logits(decoder: str) -> None:
    model, processor = make_tiny(decoder)
    inputs, places = make_inputs(model, processor)
    lens = logit_lens(model, processor, IMAGES, top=3)
    assert lens.states == [0, 1, 2, 3]
    flat = torch.tensor([place for image in places for row in image for place in row])
    expected = model(**inputs, logits_to_keep=flat).logits[0].float().softmax(-1).topk(3)
    for kept, values in ((lens.probabilities, expected.values), (lens.token_ids, expected.indices)):
        assert torch.equal(torch.cat([one[-1].flatten(0, 1) for one in kept]), values)
    logits = model(**inputs).logits[0].float().softmax(-1)
    for image, rows in enumerate(places):
        assert lens.words[image].shape == (4, len(rows), len(rows[0]), 3)
        for row, columns in enumerate(rows):
            for column, place in enumerate(columns):
                torch.testing.assert_close(lens.probabilities[image][-1, row, column], logits[place].sort().values[-3:].flip(0))


@pytest.mark.parametrize("decoder", ["llama", "qwen3"])
@torch.no_grad()
def test_inner_states_go_through_norm_and_head(decoder: str) -> None:
    model, processor = make_tiny(decoder)
    inputs, places = make_inputs(model, processor)
    lens = logit_lens(model, processor, IMAGES, states=[0, -3, 2], top=2)
    assert lens.states == [0, 1, 2]
    hidden = model(**inputs, output_hidden_states=True).hidden_states
    for index, state in enumerate(lens.states):
        for image, rows in enumerate(places):
            for row, columns in enumerate(rows):
                for column, place in enumerate(columns):
                    vector = model.get_decoder().norm(hidden[state][0, place])
                    probabilities = model.language_model.lm_head(vector).softmax(-1)
                    best = probabilities.argsort(descending=True)[:2]
                    assert lens.token_ids[image][index, row, column].tolist() == best.tolist()
                    torch.testing.assert_close(lens.probabilities[image][index, row, column], probabilities[best])
                    words = [processor.tokenizer.decode([id]) for id in best.tolist()]
                    assert lens.words[image][index, row, column].tolist() == words


def test_the_figure_has_the_words_where_the_patches_are() -> None:
    model, processor = make_tiny()
    lens = logit_lens(model, processor, IMAGES, states=[0, 3], top=1)
    figure = lens_figure(IMAGES, lens, 1)
    assert [axis.get_title() for axis in figure.axes] == ["embeddings", "block 2"]
    rows, columns = model.geometry.token_grids(*IMAGES[1].size)[0]
    for axis, words in zip(figure.axes, lens.words[1][..., 0], strict=True):
        assert len(axis.texts) == rows * columns
        for text in axis.texts:
            column, row = text.get_position()
            assert "".join(text.get_text().split()) in ("".join(words[row, column].split()), r"\n")
        left, right, bottom, top = axis.get_images()[0].get_extent()
        assert (right - left, bottom - top) == (columns, rows)
    figure.savefig("/dev/null", format="png")
    with pytest.raises(LitEveError, match="there is no image 2: there are 2"):
        lens_figure(IMAGES, lens, 2)
    with pytest.raises(LitEveError, match="the lens has maps over 2 images, but 1 are given"):
        lens_figure(IMAGES[:1], lens)


def test_what_has_no_lens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = make_tiny()
    with pytest.raises(LitEveError, match="no image"):
        logit_lens(model, processor, [])
    with pytest.raises(LitEveError, match="there is no hidden state 4: there are 4"):
        logit_lens(model, processor, IMAGES, states=[4])
    with pytest.raises(LitEveError, match="top is 1 to 128"):
        logit_lens(model, processor, IMAGES, top=0)
    decoder = model.get_decoder()
    forward = decoder.forward

    def scaled(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state * 2
        return output

    monkeypatch.setattr(decoder, "forward", scaled)
    with pytest.raises(LitEveError, match="LlamaModel does more behind its blocks"):
        logit_lens(model, processor, IMAGES)
    assert not any(module._forward_hooks for module in model.modules())
