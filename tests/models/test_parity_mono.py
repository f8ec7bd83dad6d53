"""lit_eve computes what the official Mono-InternVL code computes, from its weights and conversations on (float32, CPU).

Faults of the official code that are done right here have a test below. Its order of equally near grids of tiles is tested in
tests/processing/test_geometry.py, its prompts in tests/processing/test_official_chatml.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from lit_eve.errors import LitEveError, SampleError
from lit_eve.processing import Sample
from tests.models import reference_mono as reference

LOSS, LOGITS, GRADIENT = 1e-5, 1e-4, 1e-4
BATCHES = ("b_image", "b_text", "b_two", "b_mixed")


@pytest.fixture(scope="module")
def processor():
    return reference.processor()


@pytest.fixture
def model():
    return reference.model().eval()


@pytest.mark.parametrize("name", BATCHES)
def test_ids_and_labels(processor, name):
    """The official collator fills up with token 0, and masks every token 0."""
    expected, batch = reference.tensors(name), reference.batch(name, processor)
    for key in ("input_ids", "labels"):
        assert torch.equal(batch[key], expected[key]), key
    assert torch.equal(batch["attention_mask"], expected["attention_mask"].long())
    assert torch.equal(batch["input_ids"] == processor.image_token_id, expected["visual_token_mask"].bool())


@pytest.mark.parametrize("name", BATCHES)
def test_logits_hidden_states_loss_and_gradients(model, processor, name):
    expected, batch = reference.tensors(name), reference.batch(name, processor)
    real, known = batch["attention_mask"].bool(), reference.results()["batches"][name]
    output = model(**batch, logits_to_keep=0, output_hidden_states=True)
    assert output.loss.item() == pytest.approx(known["loss"], abs=LOSS)
    if "logits" in expected:
        assert_close(output.logits, expected["logits"], rtol=0, atol=LOGITS)
        for index, key in ((1, "hidden_1"), (3, "hidden_3"), (-1, "hidden_last")):
            assert_close(output.hidden_states[index], expected[key], rtol=0, atol=LOGITS)
    else:
        row, token = expected["supervised_rc"].T
        assert_close(output.logits[row, token], expected["supervised_logits"], rtol=0, atol=LOGITS)
        assert_close(output.logits.logsumexp(-1)[real], expected["logsumexp"][real], rtol=0, atol=LOGITS)
    if "inputs_embeds" in expected:
        assert_close(output.hidden_states[0], expected["inputs_embeds"], rtol=0, atol=1e-5)

    output.loss.backward()
    found = {key: parameter.grad for key, parameter in model.named_parameters()}
    assert len(known["grad_norms"]) == 53
    seen = set()
    for key, norm in known["grad_norms"].items():
        ours = reference.from_official({key: torch.zeros(reference.weights()[key].shape)})
        norms = torch.stack(
            [torch.zeros(()) if found[name] is None else found[name].norm() for name in ours] or [torch.zeros(1)]
        )
        assert norms.norm().item() == pytest.approx(norm, rel=GRADIENT, abs=1e-6), key
        seen |= ours.keys()
    assert seen == found.keys()
    given = {key.removeprefix("grad."): value for key, value in expected.items() if key.startswith("grad.")}
    for key, gradient in reference.from_official(given).items():
        assert (found[key] - gradient).norm() <= GRADIENT * gradient.norm(), key


@pytest.mark.parametrize("name", ["one", "two"])
def test_greedy_answers(model, processor, name):
    """The official ``generate`` returns a beginning ``<s>`` in front of them."""
    known, given = reference.results()["generate"][name], reference.tensors("generate")
    few = reference.processor(geometry=replace(processor.geometry, max_tiles=known["max_num"]).to_dict())
    question = [{"role": "user", "content": f"<image>\n{known['question']}"}]
    inputs = few(conversation=question, images=[reference.image(image) for image in known["images"]])
    assert torch.equal(inputs["input_ids"], given[f"{name}.input_ids"])
    inputs |= reference.pixels(known["images"], known["max_num"])
    settings = {"max_new_tokens": 12, "do_sample": False, "suppress_tokens": [2], "eos_token_id": None}
    answer = model.generate(**inputs, **settings, output_logits=True, return_dict_in_generate=True)
    assert answer.sequences[0, inputs["input_ids"].shape[1] :].tolist() == given[f"{name}.tokens"].tolist()
    assert_close(torch.cat(answer.logits), given[f"{name}.step_logits"], rtol=0, atol=LOGITS)


@torch.no_grad()
def test_experts_that_are_copies_are_the_language_model(model, processor):
    weights = model.state_dict()
    for name in [name for name in weights if ".image." in name]:
        weights[name].copy_(weights[name.replace(".image.", ".")])
    loss = model(**reference.batch("b_image", processor)).loss.item()
    assert loss == pytest.approx(reference.results()["probes"]["b_image_loss_when_the_experts_equal_the_text_mlp"], abs=LOSS)


# ---- faults of the official code


def test_every_image_token_takes_its_expert_however_a_prompt_is_read(model, processor):
    """The official code, in two pieces cut inside an image, gives the rest of it to the text MLP. Here that is refused."""
    batch = reference.batch("b_two", processor)
    ids = batch["input_ids"]
    images = (ids == processor.image_token_id).nonzero()[:, 1].tolist()
    between = images[3 * 4]  # the first token of the second image
    with torch.no_grad():
        whole = model(input_ids=ids, **reference.pixels(["tall", "square"], 2), logits_to_keep=0).logits
        first = model(input_ids=ids[:, :between], **reference.pixels(["tall"], 2), use_cache=True, logits_to_keep=0)
        cache, mask = first.past_key_values, torch.ones_like(ids)
        second = model(
            input_ids=ids[:, between:],
            attention_mask=mask,
            past_key_values=cache,
            **reference.pixels(["square"], 2),
            logits_to_keep=0,
        )
        assert_close(torch.cat([first.logits, second.logits], 1), whole, rtol=0, atol=LOGITS)
        with pytest.raises(LitEveError, match="the number of image slots in input_ids is not what the images need"):
            model(input_ids=ids[:, : images[2]], **reference.pixels(["tall"], 2), use_cache=True)


@pytest.mark.parametrize("change", [-2, 2])
def test_slots_that_do_not_match_the_images_are_refused(model, processor, change):
    """The official code goes on with loss 0 where there are too few, and with a traceback where there are too many."""
    batch = reference.batch("b_image", processor)
    slots = (batch["input_ids"][0] == processor.image_token_id).nonzero()[:, 0]
    wrong = batch["input_ids"].clone()
    if change < 0:
        wrong[0, slots[change:]] = 13
    else:
        wrong[0, slots[-1] + 2 : slots[-1] + 2 + change] = processor.image_token_id
    with pytest.raises(LitEveError, match="the number of image slots"):
        model(**batch | {"input_ids": wrong})


def test_text_alone_is_answered_and_runs_no_picture(model, processor):
    """The official ``generate`` cannot do without an image, and training runs a blank one."""
    batch = reference.batch("b_text", processor)
    assert len(batch["pixel_values"]) == 0
    model(**batch).loss.backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.patch_embedding.parameters())
    inputs = processor(conversation=[{"role": "user", "content": "Say hello."}])
    assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[1] > inputs["input_ids"].shape[1]


@torch.no_grad()
def test_an_unknown_word_is_read(model, processor):
    """Token 0 is ``<unk>``, and no padding: in a padded batch it counts as alone."""
    short, long = "<unk>a<unk>", "a much longer prompt, which decides the length"
    batch = processor(text=[short, long])
    alone = processor(text=short)
    assert (alone["input_ids"] == 0).sum() == 2 and alone["attention_mask"].all()
    position_ids = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    together = model(**batch, position_ids=position_ids, logits_to_keep=1).logits[0]
    assert_close(together, model(**alone, logits_to_keep=1).logits[0], rtol=0, atol=1e-5)
    without = alone | {"attention_mask": (alone["input_ids"] != 0).long()}
    assert (model(**without, logits_to_keep=1).logits[0] - together).abs().max() > 0.01


def test_a_tokenizer_with_a_dummy_prefix_supervises_all_answers():
    """The official labels rest on counts of tokens of pieces; with such a tokenizer nothing of two turns is supervised."""
    processor = reference.processor(tokenizer=reference.tokenizer(dummy_prefix=True))
    conversation = reference.results()["samples"]["text"]["conversations"]
    labels = processor.encode_sample(Sample("text", conversation))["labels"]
    end = processor.answer_end().token
    assert (labels == end).sum() == 2
    assert processor.tokenizer.decode(labels[labels >= 0]).replace("<|im_end|>", " ").split() == ["Hello,", "plant!", "No."]


def test_more_images_than_places_are_refused(processor):
    with pytest.raises(SampleError, match="s: the text has 1 places for images"):
        processor.encode_sample(
            Sample("s", reference.results()["samples"]["image"]["conversations"], [reference.image("wide")] * 2)
        )
