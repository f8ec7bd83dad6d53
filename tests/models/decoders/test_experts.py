"""Image slots through weights of their own: each token by its own, whatever way a batch or an answer is computed."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, DynamicCache

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.interpretation import AttentionRecorder
from lit_eve.interpretation.recording import ActivationRecorder
from lit_eve.models import EveConfig, EveForConditionalGeneration
from lit_eve.models.decoders.routing import Routed, image_copies
from lit_eve.testing.samples import without_labels
from tests.models import tiny
from tests.two_processes import in_two_processes

ALL = {"name": "experts", "parts": ["norms", "attention", "mlp"]}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture
def model():
    return tiny.model("qwen3", decoder_kind=ALL).eval()


def positions(model, batch):
    return (batch["input_ids"].flatten() == model.config.image_token_id).nonzero().flatten()


def equal_copies(model):
    """Give all image copies the weights of their twins."""
    weights = model.language_model.state_dict()
    with torch.no_grad():
        for copied, twin in image_copies(model.language_model).items():
            weights[copied].copy_(weights[twin])


def test_names_of_the_decoders_own_weights_stay(model):
    names = model.state_dict().keys()
    assert {name for name in names if ".image." not in name} == tiny.model("qwen3").state_dict().keys()
    assert "language_model.model.layers.0.self_attn.q_proj.image.weight" in names
    assert "language_model.model.layers.0.mlp.image.gate_proj.weight" in names
    assert "language_model.model.layers.0.self_attn.q_norm.image.weight" in names
    assert "language_model.model.layers.0.input_layernorm.image.weight" in names
    assert not any("norm.image" in name for name in names if "layers" not in name), "the final norm is shared"


def test_a_new_model_is_the_dense_one():
    torch.manual_seed(0)
    model = EveForConditionalGeneration(tiny.config("qwen3", decoder_kind=ALL)).eval()
    dense = EveForConditionalGeneration(EveConfig.from_dict(model.config.to_dict() | {"decoder_kind": None})).eval()
    dense.load_state_dict({name: value for name, value in model.state_dict().items() if ".image." not in name})
    weights = model.language_model.state_dict()
    assert all(torch.equal(weights[copied], weights[twin]) for copied, twin in image_copies(model.language_model).items())
    batch = tiny.packed([tiny.samples(model, [1, 2, 0])])
    assert_close(model(**batch).loss, dense(**batch).loss, **CLOSE)


def test_text_is_what_the_language_model_makes_of_it(model):
    """Bit for bit, with and without gradients."""
    known = AutoModelForCausalLM.from_config(model.config.text_config).eval()
    own = {name: value for name, value in model.language_model.state_dict().items() if ".image." not in name}
    known.load_state_dict(own)
    ids = tiny.samples(model, [0])[0]["input_ids"][None]
    expected = known(input_ids=ids).logits
    assert torch.equal(model(input_ids=ids).logits, expected)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, expected)


@pytest.mark.parametrize("parts", [["norms"], ["attention"], ["mlp"], ["attention", "mlp"]])
def test_words_before_an_image_do_not_know_its_weights_and_all_behind_do(parts):
    model = tiny.model("qwen3", decoder_kind={"name": "experts", "parts": parts}).eval()
    equal_copies(model)
    batch = without_labels(tiny.padded(tiny.samples(model, [1])))
    with torch.no_grad():
        before = model(**batch).logits[0]
        for name, parameter in model.named_parameters():
            if ".image." in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        after = model(**batch).logits[0]
    first = int(positions(model, batch)[0])
    assert torch.equal(before[:first], after[:first])
    assert ((before - after)[first:].abs().amax(1) > 1e-4).all()


def test_packed_samples_are_alone(model):
    """Losses, gradients and logits; the collate function's positions and those that are looked up."""
    rows = tiny.samples(model, [1, 2, 0, 1])
    batch = tiny.packed([rows[:2], rows[2:]])
    outputs, expected = tiny.gradients(model, *(tiny.padded([row]) for row in rows), num_targets=1, logits_to_keep=0)
    given = batch | {"image_positions": positions(model, batch)}
    (found,), gradients = tiny.gradients(model, given, num_targets=1, logits_to_keep=0)
    assert_close(found.loss, sum(output.loss for output in outputs), **CLOSE)
    assert_close(found.logits[0][: len(rows[0]["input_ids"])], outputs[0].logits[0], **CLOSE)
    assert gradients.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(gradients[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    (looked_up,), again = tiny.gradients(model, batch, num_targets=1)
    assert torch.equal(looked_up.loss, found.loss)
    assert all(torch.equal(again[name], value) for name, value in gradients.items())


def test_positions_of_other_tokens_are_refused(model):
    batch = tiny.packed([tiny.samples(model, [1, 1])])
    right = positions(model, batch)
    for wrong in (right[:-1], right + 1, torch.cat([right, right[-1:]])):
        with pytest.raises(LitEveError, match="image_positions are not those of the image slots"):
            model(**batch, image_positions=wrong)


def test_answers_are_the_same_by_every_way(model):
    """KV cache or none, left-padded batches, beams; generated tokens are words."""
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    rows = tiny.samples(model, [1, 0, 2])
    batch = without_labels(tiny.padded(rows, "left"))
    length = batch["input_ids"].shape[1]
    together = model.generate(**batch, **options)[:, length:]
    assert torch.equal(together, model.generate(**batch, **options, use_cache=False)[:, length:])
    beams = model.generate(**batch, **options, num_beams=3)[:, length:]
    for row, sample in enumerate(rows):
        one = without_labels(tiny.padded([sample]))
        assert torch.equal(model.generate(**one, **options)[0, -6:], together[row])
        assert torch.equal(model.generate(**one, **options, num_beams=3)[0, -6:], beams[row])


def test_step_by_step_with_a_cache(model):
    """The logits of every token, in any chunks that end between images; embeddings may be cut inside them."""
    (row,) = tiny.samples(model, [2])
    batch = without_labels(tiny.padded([row]))
    del batch["attention_mask"]
    slots = row["input_ids"] == model.config.image_token_id
    with torch.no_grad():
        expected = model(**batch).logits
        between = int(slots.nonzero()[0]) + int(model.geometry.num_tokens_of_grid(row["image_grid_hw"])[0]) + 1
        patches = int(row["image_grid_hw"][0].prod())
        cache, ids = DynamicCache(config=model.config.text_config), batch["input_ids"]
        parts = [(ids[:, :between], slice(patches), slice(1)), (ids[:, between:], slice(patches, None), slice(1, None))]
        chunks = []
        for some, p, n in parts:
            images = {"pixel_values": row["pixel_values"][p], "image_grid_hw": row["image_grid_hw"][n]}
            chunks.append(model(input_ids=some, **images, past_key_values=cache).logits)
        assert_close(torch.cat(chunks, 1), expected, **CLOSE)

        embeds = model.embed_inputs(**batch)
        for size in (7, 1):
            cache = DynamicCache(config=model.config.text_config)
            chunks = [
                model(inputs_embeds=some, image_mask=mask, past_key_values=cache).logits
                for some, mask in zip(embeds.split(size, 1), slots[None].split(size, 1), strict=True)
            ]
            assert_close(torch.cat(chunks, 1), expected, **CLOSE)


def test_embeddings_come_with_a_mask(model):
    batch = without_labels(tiny.padded(tiny.samples(model, [1, 2]), "left"))
    embeds = model.embed_inputs(batch["input_ids"], batch["pixel_values"], batch["image_grid_hw"])
    mask, seen = batch["input_ids"] == model.config.image_token_id, {"attention_mask": batch["attention_mask"]}
    given = {"inputs_embeds": embeds, "image_mask": mask, **seen}
    with torch.no_grad():
        assert torch.equal(model(**given).logits, model(**batch).logits)
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    for more in ({}, {"num_beams": 2}):
        expected = model.generate(**batch, **options, **more)[:, batch["input_ids"].shape[1] :]
        assert torch.equal(model.generate(**given, **options, **more), expected)
    with pytest.raises(LitEveError, match="this decoder must know: give image_mask"):
        model(inputs_embeds=embeds, **seen)
    with pytest.raises(LitEveError, match="image_mask belongs to inputs_embeds"):
        model(**batch, image_mask=mask)
    with pytest.raises(LitEveError, match="image_mask has the shape"):
        model(inputs_embeds=embeds, image_mask=mask[:, :-1], **seen)


def test_recomputed_blocks_find_their_own_slots(model):
    """Also with another batch in between, whose images stand elsewhere."""
    rows = tiny.samples(model, [1, 2])
    batch, other = tiny.packed([rows[:1]]), tiny.packed([rows[1:]])
    _, expected = tiny.gradients(model.train(), batch)
    model.recompute_blocks()
    model.zero_grad()
    loss = model(**batch).loss
    model(**other)
    loss.backward()
    for name, value in expected.items():
        assert_close(model.get_parameter(name).grad, value, **CLOSE)


def test_threads_do_not_see_each_others_images(model):
    batches = [without_labels(tiny.padded([row])) for row in tiny.samples(model, [1, 2, 0, 3] * 3)]
    with torch.no_grad():
        expected = [model(**batch).logits for batch in batches]

    def run(batch):
        with torch.no_grad():
            return model(**batch).logits

    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(run, batches), expected, strict=True):
            assert_close(found, wanted, **CLOSE)


def test_a_compiled_forward_gives_the_same(monkeypatch):
    monkeypatch.setitem(tiny.DECODERS, "short", tiny.DECODERS["qwen3"] | {"num_hidden_layers": 1})
    model = tiny.model("short", decoder_kind=ALL).eval()
    batch = tiny.padded(tiny.samples(model, [1, 2]))
    batch["image_positions"] = positions(model, batch)
    again = copy_of(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    try:
        with torch.no_grad():
            assert_close(compiled(**without_labels(batch)).logits, model(**without_labels(batch)).logits)
        model.get_decoder().layers[0].compile(backend="eager", fullgraph=True)
        _, found = tiny.gradients(model, batch)
    finally:
        torch.compiler.reset()
    _, expected = tiny.gradients(again, batch)
    for name, value in expected.items():
        assert_close(found[name], value, **CLOSE)


def copy_of(model):
    again = EveForConditionalGeneration(copy.deepcopy(model.config)).eval()
    again.load_state_dict(model.state_dict())
    return again


def test_recorders_see_what_is_computed(model):
    batch = without_labels(tiny.packed([tiny.samples(model, [1, 2])]))
    sites = ["query", "key", "value", "mlp", "hidden"]
    with torch.no_grad(), AttentionRecorder(model, rows=None) as attention, ActivationRecorder(model, sites) as seen:
        model(**batch)
    for layer in range(4):
        weights = attention.calls(layer)[0]
        assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    block = model.get_decoder().layers[0]
    hidden = model.embed_inputs(batch["input_ids"], batch["pixel_values"], batch["image_grid_hw"])
    is_image = batch["input_ids"][0] == model.config.image_token_id
    for rows, pick in ((is_image, lambda module: module.image), (~is_image, plain)):
        some = pick(block.input_layernorm)(hidden[:, rows])
        value = pick(block.self_attn.v_proj)(some).unflatten(-1, (2, -1)).transpose(1, 2)
        assert_close(seen.calls("value", 0)[0][:, :, rows], value, **CLOSE)


def plain(module):
    """The module as transformers made it."""
    assert isinstance(module, Routed)
    return lambda x: super(Routed, module).forward(x)


def test_a_step_costs_what_a_dense_one_does():
    counted = {}
    for kind in (ALL, {"name": "dense"}):
        model = tiny.model("llama", decoder_kind=kind).train()
        with FlopCounterMode(display=False) as flops:
            model(**tiny.packed([tiny.samples(model, [1, 2, 0])])).loss.backward()
        counted[kind["name"]] = flops.get_total_flops()
    assert counted["experts"] <= 1.05 * counted["dense"]


def test_copies_and_pickles_are_the_same(model):
    batch = without_labels(tiny.padded(tiny.samples(model, [1])))
    with torch.no_grad():
        expected = model(**batch).logits
        for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(again(**batch).logits, expected)
            assert type(again.get_decoder().layers[0].mlp) is type(model.get_decoder().layers[0].mlp)


def test_kernels_that_would_pass_over_the_copies_are_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="use_kernels: kernels would pass over what a decoder of the kind 'experts' adds"):
        EveForConditionalGeneration.from_pretrained(tmp_path, use_kernels=True)


def data_parallel() -> None:
    """One process has images, the other none; the image copies train in both."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    model = tiny.model("llama", decoder_kind=ALL).train()
    batches = [tiny.packed([tiny.samples(model, images)]) for images in ([1, 2], [0, 0])]
    parallel = DistributedDataParallel(model)
    for _ in range(2):  # a parameter without a gradient would stop the second
        parallel.zero_grad()
        parallel(**batches[rank]).loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    _, expected = tiny.gradients(model, *batches)
    for name, value in found.items():
        assert_close(value, expected[name] / 2, **CLOSE)


def test_image_copies_train_where_a_process_has_no_image():
    in_two_processes(data_parallel)


@pytest.mark.parametrize("parts", [[], ["norm"], ["mlp", "mlp"], "mlp"])
def test_parts_that_there_are_not(parts):
    with pytest.raises(ConfigError, match="the parts of experts must be some of norms, attention, mlp"):
        tiny.model(decoder_kind={"name": "experts", "parts": parts})


def test_an_unknown_kind_is_refused():
    with pytest.raises(ConfigError, match="unknown kind of decoder 'expert'; known: dense, experts"):
        tiny.model(decoder_kind={"name": "expert"})
