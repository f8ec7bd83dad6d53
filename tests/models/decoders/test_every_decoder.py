"""Every family that transformers can build a causal language model of: right inside EVE, or refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import lit_eve
from lit_eve.data.dataset import Collate, model_inputs
from lit_eve.errors import ConfigError, LitEveError
from lit_eve.models import EveConfig, EveForConditionalGeneration
from lit_eve.models.checkpoints.skeletons import unsaved_buffers
from lit_eve.models.decoders import blocks_of, check_decoder, longest_sample, reads_longer_samples
from lit_eve.models.decoders.families import PACKED, POSITION_TABLES, REFUSED, SIDE_BY_SIDE
from lit_eve.models.taps import hidden_state_taps
from lit_eve.testing.samples import without_labels
from lit_eve.training.blueprint import Blueprint
from tests.models import tiny
from tests.models.decoders.decoder_families import FAMILIES, VOCAB, tiny_config, tiny_model

# Tried by default: one of each kind. The others are slow.
TRIED = [
    *("cohere", "falcon_h1", "gemma2", "gpt2", "gpt_neox", "gpt_oss", "granite", "mixtral", "qwen2", "qwen3_moe"),
    "qwen3_next",
]
RIGHT = (PACKED | SIDE_BY_SIDE) & set(FAMILIES)
families = pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in TRIED else pytest.mark.slow) for name in sorted(RIGHT)]
)
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
# Its recurrent layers sum over chunks, which padding shifts: on some processors rounding alone comes to 4e-4.
CLOSE_IN_CHUNKS = {"qwen3_next": {"rtol": 1e-3, "atol": 1e-3}}
PARTS = {"geometry": tiny.GEOMETRY, "patch_embedding": {"name": "eve_v1", "width": 16, "num_heads": 4}}


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(models.WordLevel({f"w{index}": index for index in range(VOCAB)}, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", bos_token="w1", eos_token="w2", unk_token="w3")


@families
def test_a_family_is_right(family, tokenizer, tmp_path):
    known = tiny_model(family)
    folder = tmp_path / "decoder"
    known.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    known.set_attn_implementation("eager")
    blueprint = Blueprint(decoder=str(folder), **PARTS)
    blueprint.check()
    model = blueprint.build().eval()
    with torch.no_grad():
        for parameter in (*model.patch_embedding.parameters(), *model.projector.parameters()):
            parameter.normal_(std=0.2)
        is_transformers_own(known, model)
        samples_are_alone(model)
        if family in PACKED:
            model.language_model.set_attn_implementation("eager")
            samples_are_alone(model)
            model.language_model.set_attn_implementation("packed")
        answers_are_those_of_transformers(known, model)
    gradients_reach_everything(model)
    with torch.no_grad():
        is_the_same_after_loading(model, blueprint, tmp_path / "model")


def is_transformers_own(known, model):
    for name, buffer in unsaved_buffers(known).items():
        assert torch.equal(unsaved_buffers(model.language_model)[name], buffer), name
    ids = torch.randint(3, VOCAB, (2, 21), generator=torch.Generator().manual_seed(0))
    expected = known(input_ids=ids, labels=ids, output_hidden_states=True)
    with hidden_state_taps(blocks_of(model.get_decoder()), [1, 2], lambda _, hidden: hidden) as states:
        output = model(input_ids=ids, labels=ids, logits_to_keep=0)
    assert_close(output.logits, expected.logits, **CLOSE)
    assert_close(output.language_loss, expected.loss.float(), **CLOSE)
    assert_close(states[1], expected.hidden_states[1], **CLOSE)


def samples_are_alone(model):
    """Packed, or beside each other behind padding, samples are what they are alone; no token sees a later one."""
    rows = tiny.samples(model, [1, 2, 0])
    alone = [model(**without_labels(tiny.padded([row]))).logits[0] for row in rows]
    assert max(map(len, alone)) > 2 * min(map(len, alone))
    batch = without_labels(tiny.packed([rows[:2], rows[2:]]))
    first, second = model(**batch).logits
    assert_close(first, torch.cat(alone[:2]), **CLOSE)
    assert_close(second[: len(alone[2])], alone[2], **CLOSE)
    batch = without_labels(tiny.padded(rows, "left"))
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    close = CLOSE_IN_CHUNKS.get(model.config.text_config.model_type, CLOSE)
    for found, expected in zip(model(**batch, position_ids=positions).logits, alone, strict=True):
        assert_close(found[-len(expected) :], expected, **close)
    ids = rows[2]["input_ids"][None]
    assert_close(model(input_ids=ids[:, :3]).logits[0], alone[2][:3], **CLOSE)


def answers_are_those_of_transformers(known, model):
    """Greedy answers: of a left-padded batch, with a KV cache; without one, step by step; and of transformers' own model."""
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    rows = tiny.samples(model, [1, 0])
    batch = without_labels(tiny.padded(rows, "left"))
    together = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
    alone = without_labels(tiny.padded(rows[:1]))
    for _ in range(4):
        new = model(**alone).logits[:, -1].index_fill(-1, torch.tensor([2]), -torch.inf).argmax(-1)  # min_new_tokens
        alone["input_ids"] = torch.cat([alone["input_ids"], new[:, None]], 1)
        alone["attention_mask"] = torch.ones_like(alone["input_ids"])
    assert together[0].tolist() == alone["input_ids"][0, -4:].tolist()
    words = rows[1]["input_ids"][None]
    assert together[1].tolist() == known.generate(words, **options)[0, words.shape[1] :].tolist()


def gradients_reach_everything(model):
    batch = tiny.packed([tiny.samples(model, [1, 1, 0])])
    torch.manual_seed(0)  # some families have dropout by default
    _, expected = tiny.gradients(model.train(), batch)
    assert all(value.isfinite().all() for value in expected.values())
    assert expected["patch_embedding.patch_projection.weight"].any()
    if model.supports_gradient_checkpointing and any(hasattr(m, "gradient_checkpointing") for m in model.modules()):
        model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        _, found = tiny.gradients(model, batch)
        for name, value in expected.items():
            assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
        model.gradient_checkpointing_disable()
    model.eval()


def is_the_same_after_loading(model, blueprint, folder):
    """By every way in which a model is loaded."""
    model.save_pretrained(folder)
    blueprint.processor.save_pretrained(folder)
    batch = without_labels(tiny.packed([tiny.samples(model, [1, 0])]))
    expected = model(**batch).logits
    for again in (lit_eve.load(folder)[0], Blueprint(init_from=str(folder)).build().eval()):
        for tensors in (torch.nn.Module.state_dict, unsaved_buffers):
            found, wanted = tensors(again), tensors(model)
            assert found.keys() == wanted.keys()
            assert all(torch.equal(found[name], value) for name, value in wanted.items())
        assert_close(again(**batch).logits, expected, **CLOSE)


@families
def test_a_position_behind_the_table_cannot_be_read(family):
    """And in families without a table, it can."""
    model = tiny_model(family)
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is None:
        assert family not in POSITION_TABLES
        return
    ids = torch.full((1, limit + 1), 5)
    try:
        with torch.no_grad():
            model(input_ids=ids)
    except (IndexError, RuntimeError):
        assert family in POSITION_TABLES
    else:
        assert family not in POSITION_TABLES


DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [8.0] * 4, "factor": 16.0}


@pytest.mark.parametrize(
    ("family", "changes", "limit"),
    [
        ("gpt2", {"max_position_embeddings": 24}, 24),
        ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 24}, 24),
        ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": 24}, 24),
        ("gemma3_text", {}, None),
    ],
)
def test_padding_has_no_positions_that_no_sample_has(family, changes, limit):
    """Where decoders cannot read on behind a limit, or read all samples otherwise once one is behind it."""
    config = tiny_config(family, **changes)
    assert (longest_sample(config), reads_longer_samples(config)) == ((limit, False) if limit else (256, True))
    torch.manual_seed(0)
    model = EveForConditionalGeneration(EveConfig(text_config=config, **PARTS)).eval()
    whole = {"image_seeds": torch.zeros(0, dtype=torch.long), "key": "a", "shard": "x"}
    rows = [row | whole for row in tiny.samples(model, [0, 0], seed=1)]
    batch = Collate(max_tokens=90, pad_token_id=0, patch_dim=48, image_token_id=model.config.image_token_id)([rows, []])
    assert max(len(row["input_ids"]) for row in rows) <= 24 < 90 - sum(len(row["input_ids"]) for row in rows)
    with torch.no_grad():
        alone = [model(**without_labels(tiny.padded([row]))).logits[0] for row in rows]
        found = model(**without_labels(model_inputs(batch))).logits[0, : sum(map(len, alone))]
    assert_close(found, torch.cat(alone), **CLOSE)


def test_word_embeddings_of_another_width_are_refused(tokenizer, tmp_path):
    """As OPT-350m has them."""
    AutoModelForCausalLM.from_config(tiny_config("opt", word_embed_proj_dim=16)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="word embeddings have the width 16, and its layers 32"):
        Blueprint(decoder=str(tmp_path), **PARTS).check()


def test_each_family_of_transformers_stands_in_one_list():
    """Of a new version of transformers, too."""
    lists = [PACKED, SIDE_BY_SIDE, set(REFUSED)]
    assert sum(map(len, lists)) == len(set.union(*lists))
    assert set(FAMILIES) <= set.union(*lists)  # an older one has fewer
    assert POSITION_TABLES <= PACKED | SIDE_BY_SIDE


def test_the_documents_lists_are_those_of_the_code():
    rows = (Path(__file__).parents[3] / "docs/decoders.md").read_text()
    reasons = {reason: {name for name in REFUSED if REFUSED[name] == reason} for reason in REFUSED.values()}
    as_they_are, side_by_side = "packed: attention keeps the samples apart", "side by side: one row per sample"
    for title, names in {as_they_are: PACKED, side_by_side: SIDE_BY_SIDE, **reasons}.items():
        assert f"| {title} | {' '.join(sorted(names))} |" in rows
    assert f"positions in a table: {' '.join(sorted(POSITION_TABLES))}." in " ".join(rows.split())


def test_a_kernel_for_packed_rows_is_refused_where_the_decoder_would_not_use_it(tokenizer, tmp_path):
    tiny_model("gemma2").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="model.attn_implementation: 'packed' is not for decoders of the family 'gemma2'"):
        Blueprint(decoder=str(tmp_path), attn_implementation="packed", **PARTS).check()


@pytest.mark.parametrize(
    ("family", "words"), [("bert", "both directions"), ("mamba", "KV cache"), ("gemma3", "language model alone")]
)
def test_a_family_that_would_be_wrong_is_refused_before_anything_is_read(family, words, tmp_path):
    AutoConfig.for_model(family).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=f"model.decoder: .*{family}.*{words}"):
        Blueprint(decoder=str(tmp_path), **PARTS).check()


@pytest.mark.parametrize(
    ("family", "change", "words"),
    [
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("mixtral", {"output_router_logits": True}, "output_router_logits"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
        ("no_such_family", {}, "in no list of those that were proven"),
    ],
)
def test_what_a_config_asks_for_beyond_its_family_is_refused(family, change, words):
    with pytest.raises(LitEveError, match=words):
        check_decoder(SimpleNamespace(model_type=family, **change))
