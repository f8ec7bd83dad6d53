"""lit_eve computes what the official VoRA code computes, from its weights and the files of images on (float32, CPU).

Other official faults are done right, and tested, elsewhere: positions of small images (test_official_embeddings.py), images
that touch and rows that end with one (attention/test_images.py).
"""

from __future__ import annotations

import pytest
import torch
from einops import rearrange
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from lit_eve.errors import ConfigError
from lit_eve.models.checkpoints.merging import merged, merges_of
from lit_eve.processing.images import normalize_pixels
from tests.models import reference_vora as reference

LOSS, LOGITS, GRADIENT = 1e-5, 1e-4, 1e-4


@pytest.fixture
def model():
    return reference.load(reference.config()).train()


@pytest.fixture
def processor():
    return reference.processor(reference.config())


def test_all_weights_have_a_place(model):
    official = {name for name in reference.official_weights() if "aux_model" not in name}
    assert {reference.ours(name) for name in official} == set(model.state_dict())
    assert sum(value.numel() for name, value in model.state_dict().items() if ".lora_" in name) == 29_696


@pytest.mark.parametrize("name", ["b_image", "b_two"])
def test_pixels(name, processor):
    """Of the student and the teacher."""
    batch, frames = reference.batch(name, processor), reference.tensors(name)["frames"]
    mean, std = processor.image_mean, processor.image_std
    teacher = normalize_pixels(batch["teacher_pixel_values"], mean, std, torch.float32)
    assert_close(teacher, frames, rtol=0, atol=1e-6)
    patches = rearrange(batch["teacher_pixel_values"], "n c (h p) (w q) -> (n h w) (c p q)", p=14, q=14)
    assert torch.equal(batch["pixel_values"], patches)


@pytest.mark.parametrize("name", ["b_image", "b_text", "b_two", "b_mixed"])
def test_logits_hidden_states_losses_and_gradients(name, model, processor):
    expected, batch = reference.tensors(name), reference.batch(name, processor)
    real = expected["padding_mask"].bool()
    assert torch.equal(batch["attention_mask"].bool(), real)
    assert torch.equal(batch["input_ids"] == processor.image_token_id, expected["vision_mask"].bool())
    assert torch.equal(batch["labels"][real], expected["labels"][real])
    output = model(**batch, logits_to_keep=0, output_hidden_states=True)

    if "logits" in expected:
        assert_close(output.logits[real], expected["logits"][real], rtol=0, atol=LOGITS)
        assert_close(output.hidden_states[2][real], expected["hidden_2"][real], rtol=0, atol=LOGITS)
        assert_close(output.hidden_states[-1][real], expected["hidden_last"][real], rtol=0, atol=LOGITS)
    else:
        row, token = expected["supervised_rc"].T
        assert_close(output.logits[row, token], expected["supervised_logits"], rtol=0, atol=LOGITS)
        assert_close(output.logits.logsumexp(-1)[real], expected["logsumexp"][real], rtol=0, atol=LOGITS)

    known = reference.results()["batches"][name]
    assert output.language_loss.item() == pytest.approx(known["metrics"]["llm_loss"], abs=LOSS)
    assert output.loss.item() == pytest.approx(known["metrics"]["total_loss"], abs=LOSS)
    for layer, loss in enumerate(losses_of_layers(model, batch, output) if real.shape[0] == 1 else []):
        assert loss == pytest.approx(known["metrics"][f"loss_aux_layer_{layer}"], abs=LOSS)

    output.loss.backward()
    found = {key: parameter.grad for key, parameter in model.named_parameters()}
    assert known["grad_norms"]
    for key, norm in known["grad_norms"].items():
        gradient = found[reference.ours(key)]
        norm_found = 0.0 if gradient is None else gradient.norm().item()
        assert norm_found == pytest.approx(norm or 0.0, rel=GRADIENT, abs=1e-6), key
    for key in (key for key in expected if key.startswith("grad.")):
        key, value = key.removeprefix("grad."), expected[key]
        assert (found[reference.ours(key)] - reference.as_ours(key, value)).norm() <= GRADIENT * value.norm(), key


def losses_of_layers(model, batch, output) -> list[float]:
    """1 - cosine of each head's prediction, of a single row."""
    if "pixel_values" not in batch:
        return [0.0] * 4
    pixels = normalize_pixels(batch["teacher_pixel_values"], model.teacher.grid.mean, model.teacher.std, torch.float32)
    is_image = batch["input_ids"] == model.config.image_token_id
    return [
        (1 - torch.cosine_similarity(model.distillation[layer](output.hidden_states[layer][is_image]), state.flatten(0, 1)))
        .mean()
        .item()
        for layer, state in enumerate(model.teacher(pixels, every=True))
    ]


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name", ["b_image", "b_text", "b_two"])
def test_greedy_answers(name, use_cache, processor):
    model = reference.load(reference.config(supervision=None)).eval()
    answer = greedy(model, [prompt(name, processor)], [name], processor, use_cache=use_cache, output_logits=True)
    assert answer.sequences[0, -12:].tolist() == reference.tensors("generate")[f"{name}.tokens"].tolist()
    logits = torch.cat(answer.logits)
    logits[:, 511] = reference.tensors("generate")[f"{name}.step_logits"][:, 511]  # the end is forbidden there
    assert_close(logits, reference.tensors("generate")[f"{name}.step_logits"], rtol=0, atol=LOGITS)


def test_a_batch_of_unequal_prompts_answers_like_one_by_one(processor):
    """The official generate() pads on the right, and new tokens see the padding."""
    model, names = reference.load(reference.config(supervision=None)).eval(), ["b_image", "b_text", "b_two"]
    answers = greedy(model, [prompt(name, processor) for name in names], names, processor)
    for row, name in enumerate(names):
        assert answers.sequences[row, -12:].tolist() == reference.tensors("generate")[f"{name}.tokens"].tolist()


def prompt(name, processor):
    ids = reference.tensors("generate")[f"{name}.prompt_ids"][0]
    return reference.expand(ids, ids, processor)[0]


def greedy(model, prompts, names, processor, **options):
    length = max(map(len, prompts))
    pad = lambda x: torch.nn.functional.pad(x, (length - len(x), 0))  # noqa: E731
    images = reference.images([one for name in names for row in reference.ROWS[name] for one in row], processor)
    images.pop("teacher_pixel_values", None)
    return model.generate(
        input_ids=torch.stack([pad(ids) for ids in prompts]),
        attention_mask=torch.stack([pad(torch.ones_like(ids)) for ids in prompts]),
        **images,
        max_new_tokens=12,
        do_sample=False,
        suppress_tokens=[511],
        pad_token_id=0,
        return_dict_in_generate=True,
        **options,
    )


# ---- merging


def merged_weights(config, weights):
    """Our merge, under official names."""
    prefix = "llm."
    merges = merges_of(config, [name.removeprefix(prefix) for name in weights])
    made = {prefix + name: one._replace(sources=tuple(prefix + x for x in one.sources)) for name, one in merges.items()}
    return dict(merged(weights.items(), made))


def test_merged_weights_and_logits(processor):
    """The official merge keeps the biases: where they are, our merged weights give the official numbers."""
    expected, weights = reference.tensors("merged"), reference.official_weights()
    config = reference.config()
    kind = config.decoder_kind | {"bias": False}
    after = merged_weights(reference.config(decoder_kind=kind), weights)
    assert len(after) == reference.results()["merged_keys"]["n"]
    for name in (name for name in expected if name.startswith("llm.")):
        assert_close(after[name], expected[name], rtol=0, atol=1e-6)
    adapters = {name: torch.zeros_like(value) for name, value in weights.items() if ".lora_" in name}
    model = reference.load(config, after | adapters).eval()
    output = model(**reference.batch("b_image", processor), logits_to_keep=0)
    positions = expected["b_image.supervised_positions"]
    assert_close(output.logits[0, positions], expected["b_image.supervised_logits"], rtol=0, atol=LOGITS)
    assert_close(output.logits[0].logsumexp(-1), expected["b_image.logsumexp"], rtol=0, atol=LOGITS)
    assert output.loss.item() == pytest.approx(reference.results()["merged"]["b_image"]["loss"], abs=LOSS)


def test_the_official_biases_have_no_place_in_a_dense_decoder():
    with pytest.raises(ConfigError, match="adapters with bias: true cannot be merged"):
        merges_of(reference.config(), [])


def test_without_the_biases_a_fresh_model_is_its_language_model_and_a_merged_one_a_plain_qwen2(processor):
    """The official one differs from its language model by 0.66, at logits of 0.59."""
    unbiased = {**reference.config().decoder_kind, "bias": False}
    config = reference.config(decoder_kind=unbiased, supervision=None)
    extra = set(reference.results()["merged_keys"]["biases_a_plain_qwen2_lacks"])
    weights = {name: value for name, value in reference.official_weights().items() if name not in extra}
    batch = {
        key: value
        for key, value in reference.batch("b_two", processor).items()
        if key not in ("labels", "teacher_pixel_values")
    }
    plain = reference.config(decoder_kind=None, supervision=None)
    none = {name: value for name, value in weights.items() if ".lora_" not in name}
    fresh = none | {name: value * ("lora_A" in name) for name, value in weights.items() if ".lora_" in name}
    assert torch.equal(reference.load(config, fresh).eval()(**batch).logits, reference.load(plain, none).eval()(**batch).logits)

    after = merged_weights(config, weights)
    trained, dense = reference.load(config, weights).eval(), reference.load(plain, after).eval()
    assert_close(dense(**batch).logits, trained(**batch).logits, rtol=0, atol=1e-5)
    qwen2 = AutoModelForCausalLM.from_config(plain.text_config)
    qwen2.load_state_dict({name.removeprefix("llm."): value for name, value in after.items() if name.startswith("llm.")})
