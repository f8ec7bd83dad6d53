"""Time, height and width: transformers' Qwen2-VL positions and logits, by whatever way a batch or an answer is computed."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.testing import assert_close
from transformers import DynamicCache, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.interpretation import AttentionRecorder
from lit_eve.models import POSITIONS, EveForConditionalGeneration, TimeHeightWidth
from tests.models import tiny
from tests.models.attention.images import sample, samples, without_labels

NATIVE = {"name": "native", "patch_size": 4, "pool_size": 2, "min_pixels": 64, "max_pixels": 4096}
THW = {"positions": {"name": "thw"}}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
OPTIONS = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def native(decoder="qwen2_tied", **kwargs):
    fields = {"geometry": NATIVE, "patch_embedding": {"name": "linear", "width": 16}, **THW} | kwargs
    return tiny.model(decoder, **fields).eval()


@pytest.fixture(scope="module")
def qwen2_vl():
    """transformers' model, and ours with its language model's weights."""
    torch.manual_seed(0)
    text = tiny.DECODERS["qwen2_tied"] | {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    }
    vision = {"embed_dim": 16, "hidden_size": 32, "depth": 1, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2}
    text.pop("model_type")
    theirs = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True))
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    ours = native(positions={"name": "thw", "sections": [1, 1, 2]})
    weights = theirs.model.language_model.state_dict()
    ours.get_decoder().load_state_dict(weights)
    return theirs.eval(), ours


def theirs_of(model, batch):
    """(B, T, 3)"""
    grid = torch.cat([torch.ones(len(batch["image_grid_hw"]), 1, dtype=torch.long), batch["image_grid_hw"]], 1)
    types = (batch["input_ids"] == tiny.VOCAB).int()
    found, deltas = model.model.get_rope_index(batch["input_ids"], types, grid, attention_mask=batch.get("attention_mask"))
    return found.permute(1, 2, 0), deltas


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_and_logits_are_those_of_qwen2_vl(qwen2_vl, side):
    """Several images, none, one in front and one at the end; images do not touch, which theirs takes for one."""
    theirs, ours = qwen2_vl
    layouts = [[(1, 2), 4, (2, 1), 3], [5, (2, 3), 1, (1, 3), 2], [3, (3, 1)], [7]]
    rows = [sample(ours, pieces, seed) for seed, pieces in enumerate(layouts)]
    batch = without_labels(tiny.padded(rows, side))
    expected, deltas = theirs_of(theirs, batch)
    found = ours.position_tokens(*(batch[key] for key in ("input_ids", "image_grid_hw", "attention_mask")))
    assert torch.equal(found[..., :3], expected)
    real = batch["attention_mask"].bool()
    assert torch.equal(found[..., 3].amax(1), batch["attention_mask"].sum(1) + deltas[:, 0]), "the next word"
    with torch.no_grad():
        embeds = ours.embed_inputs(*(batch[key] for key in ("input_ids", "pixel_values", "image_grid_hw")))
        mask = batch["attention_mask"]
        hidden = theirs.model.language_model(
            inputs_embeds=embeds, position_ids=expected.permute(2, 0, 1), attention_mask=mask
        ).last_hidden_state
        assert_close(ours(**batch).logits[real], theirs.lm_head(hidden)[real], rtol=0, atol=1e-4)


def test_text_alone_is_what_the_language_model_makes_of_it():
    model, plain = native(), native(positions=None)
    row = sample(model, [9])
    with torch.no_grad():
        assert torch.equal(
            model(**without_labels(tiny.padded([row]))).logits, plain(**without_labels(tiny.padded([row]))).logits
        )


def test_class_and_split_tokens():
    """A class token is a word in front of its image, a split token one more column."""
    model = tiny.model(**THW)
    row = sample(model, [1, (1, 2), 1])  # two tokens in a row
    found = model.position_tokens(row["input_ids"][None], row["image_grid_hw"])[0]
    assert found.tolist() == [[0, 0, 0, 1], [1, 1, 1, 2], [2, 2, 2, 5], [2, 2, 3, 5], [2, 2, 4, 5], [5, 5, 5, 6]]


@pytest.mark.parametrize(
    ("decoder", "implementation", "checkpointing", "more"),
    [
        ("llama_gqa", "packed", True, {}),
        ("qwen3", "packed", False, {"image_attention": {"name": "bidirectional"}}),
        ("qwen3", "sdpa", False, {}),
        ("qwen3", "eager", True, {"decoder_kind": {"name": "experts"}}),
    ],
)
def test_packed_rows_give_the_losses_and_gradients_of_their_samples_alone(decoder, implementation, checkpointing, more):
    model = tiny.model(decoder, with_teacher=True, **THW, **more)
    tiny.assert_packed_like_alone(model, samples(model), implementation, checkpointing)


def test_places_of_packed_rows_begin_anew():
    model = tiny.model(**THW)
    rows = samples(model)
    batch = tiny.packed([rows[:2], rows[2:]])
    found = model.position_tokens(batch["input_ids"], batch["image_grid_hw"], cu_seqlens=batch["cu_seqlens"])
    alone = [model.position_tokens(row["input_ids"][None], row["image_grid_hw"])[0] for row in rows]
    joined = [torch.cat(alone[:2]), torch.cat(alone[2:])]
    for row, expected in zip(found, joined, strict=True):
        assert torch.equal(row[: len(expected)], expected)


def greedy(model, row, steps=4):
    inputs = without_labels(tiny.padded([row]))
    for _ in range(steps):
        with torch.no_grad():
            new = model(**inputs).logits[:, -1].argmax(-1)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], new[:, None]], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return inputs["input_ids"][0, -steps:].tolist()


def test_answers_by_every_way():
    """Left-padded batches, KV caches or none, beams, an assistant, embeddings; one prompt ends with its image."""
    model, small = tiny.model("qwen3", **THW).eval(), tiny.model("qwen3", seed=1, **THW).eval()
    rows = samples(model)[:3]
    expected = [greedy(model, row) for row in rows]
    batch = without_labels(tiny.padded(rows, "left"))
    length = batch["input_ids"].shape[1]
    for options in ({}, {"cache_implementation": "static"}, {"use_cache": False}):
        assert model.generate(**batch, **OPTIONS, **options)[:, length:].tolist() == expected, options
    beams = model.generate(**batch, **OPTIONS, num_beams=3)
    assert torch.equal(beams, model.generate(**batch, **OPTIONS, num_beams=3, use_cache=False))
    images = [batch[key] for key in ("input_ids", "pixel_values", "image_grid_hw")]
    embeds = {"inputs_embeds": model.embed_inputs(*images), "attention_mask": batch["attention_mask"]}
    with pytest.raises(LitEveError, match="give token_positions beside them"):
        model.generate(**embeds, **OPTIONS)
    embeds["token_positions"] = model.position_tokens(images[0], images[2], batch["attention_mask"])
    assert model.generate(**embeds, **OPTIONS).tolist() == expected
    assert torch.equal(model.generate(**embeds, **OPTIONS, num_beams=3), beams[:, length:])
    one = without_labels(tiny.padded(rows[:1]))
    assert model.generate(**one, **OPTIONS, assistant_model=small)[0, -4:].tolist() == expected[0]
    out = model.generate(**one, **OPTIONS, return_dict_in_generate=True)
    going_on = {key: one[key] for key in ("pixel_values", "image_grid_hw")} | {"past_key_values": out.past_key_values}
    again = model.generate(input_ids=out.sequences, **going_on, **OPTIONS)
    longer = rows[0] | {"input_ids": out.sequences[0], "labels": out.sequences[0]}
    assert again[0, -4:].tolist() == greedy(model, longer)


def test_step_by_step_with_a_cache():
    model = tiny.model("qwen3", **THW).eval()
    for row in samples(model)[:2]:
        batch = without_labels(tiny.padded([row]))
        with torch.no_grad():
            expected = model(**batch).logits
            embeds = model.embed_inputs(*(batch[key] for key in ("input_ids", "pixel_values", "image_grid_hw")))
            places = model.position_tokens(batch["input_ids"], batch["image_grid_hw"])
            cache, found = DynamicCache(config=model.config.text_config), []
            for place in range(embeds.shape[1]):
                now = slice(place, place + 1)
                inputs = {"inputs_embeds": embeds[:, now], "past_key_values": cache}
                if place == 1:
                    with pytest.raises(LitEveError, match="must know what is in the KV cache"):
                        model(**inputs)
                    with pytest.raises(LitEveError, match="must know what is in the KV cache"):
                        model(input_ids=batch["input_ids"][:, :1] * 0, past_key_values=cache)
                found.append(model(**inputs, token_positions=places[:, : place + 1] if place % 2 else places[:, now]).logits)
        assert_close(torch.cat(found, 1), expected, **CLOSE)


def test_threads_compiled_blocks_copies_and_pickles():
    model = tiny.model("qwen3", **THW).eval()
    batches = [without_labels(tiny.padded([row])) for row in samples(model)]
    with torch.no_grad():
        expected = [model(**batch).logits for batch in batches]

        def run(batch):
            with torch.no_grad():
                return model(**batch).logits

        with ThreadPoolExecutor(4) as pool:
            for found, wanted in zip(pool.map(run, batches), expected, strict=True):
                assert_close(found, wanted, **CLOSE)
        for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(again(**batches[0]).logits, expected[0])
        try:
            model.get_decoder().layers[0].compile(backend="eager", fullgraph=True)
            assert_close(model(**batches[0]).logits, expected[0], **CLOSE)
        finally:
            torch.compiler.reset()


def test_experts_and_positions_are_copied_together():
    model = tiny.model("qwen3", **THW, decoder_kind={"name": "experts"}).eval()
    batch = without_labels(tiny.padded(samples(model)[:1]))
    with torch.no_grad():
        again = pickle.loads(pickle.dumps(model))
        assert torch.equal(again(**batch).logits, model(**batch).logits)


def test_it_is_saved_and_loaded(tmp_path):
    model = tiny.model("qwen3", positions={"name": "thw", "sections": [2, 3, 3]}).eval()
    model.save_pretrained(tmp_path)
    again = EveForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert again.config.positions == {"name": "thw", "sections": [2, 3, 3]}
    batch = without_labels(tiny.padded(samples(model)[:1]))
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)
        other = tiny.model("qwen3").eval()(**batch).logits
        assert not torch.allclose(other, model(**batch).logits, **CLOSE)


def test_the_recorder_sees_them():
    model = tiny.model("qwen3", **THW).eval()
    batch = without_labels(tiny.packed([samples(model)[:2]]))
    with torch.no_grad(), AttentionRecorder(model, rows=None) as attention:
        model(**batch)
    weights = attention.calls(0)[0]
    assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "thw", "sections": [2, 3]}, "the sections of positions must be three positive whole numbers"),
        ({"name": "thw", "sections": [2, 3, 4]}, r"positions.sections: \[2, 3, 4\] must add up to the 8 pairs"),
        ({"name": "two"}, "unknown kind of positions 'two'; known: "),
        ({"name": "sequential", "start": 1}, "'sequential' has no argument 'start'"),
    ],
)
def test_a_typo_is_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        tiny.model("qwen3", positions=spec)


def test_what_cannot_be_known_is_refused():
    model = tiny.model("qwen3", **THW).eval()
    row = without_labels(tiny.padded(samples(model)[:1]))
    length = row["input_ids"].shape[1]
    with pytest.raises(LitEveError, match="where tokens stand needs an attention_mask"):
        model(**row | {"attention_mask": torch.ones(1, 1, length, length)})
    with pytest.raises(ConfigError, match="use_kernels: kernels were not tried with positions 'thw'"):
        model.set_use_kernels(True)
    with pytest.raises(LitEveError, match="token_positions has the shape"):
        model(**row, token_positions=torch.zeros(1, length, 3, dtype=torch.long))
    with pytest.raises(LitEveError, match="this model counts its tokens"):
        tiny.model("qwen3")(**row, token_positions=torch.zeros(1, length, 4, dtype=torch.long))


def test_a_config_without_it_counts():
    assert tiny.config().positions == {"name": "sequential"} and tiny.model().positions.is_sequential


class OneStep(TimeHeightWidth):
    """An image takes one step, however large it is."""

    def steps(self, rows, columns):
        return torch.ones_like(rows)


def test_a_kind_of_ones_own(monkeypatch):
    """What stands behind an image follows from its steps, in one piece and from a cache."""
    monkeypatch.setitem(POSITIONS._variants, "one_step", OneStep)
    model = tiny.model("qwen3", positions={"name": "one_step"}).eval()
    rows = samples(model)[:3]
    batch = without_labels(tiny.padded(rows, "left"))
    expected = [greedy(model, row) for row in rows]
    assert model.generate(**batch, **OPTIONS)[:, batch["input_ids"].shape[1] :].tolist() == expected
    embeds = model.embed_inputs(*(batch[key] for key in ("input_ids", "pixel_values", "image_grid_hw")))
    places = model.position_tokens(*(batch[key] for key in ("input_ids", "image_grid_hw", "attention_mask")))
    given = {"inputs_embeds": embeds, "token_positions": places, "attention_mask": batch["attention_mask"]}
    assert model.generate(**given, **OPTIONS).tolist() == expected
