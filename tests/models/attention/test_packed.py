"""Packed rows give exactly what their samples give alone, whichever kernel keeps them apart."""

from __future__ import annotations

import inspect
import json
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen
from torch.testing import assert_close
from transformers import AutoModelForImageTextToText, modeling_flash_attention_utils
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lit_eve.errors import LitEveError
from lit_eve.models import PACKED, PACKED_SDPA, PACKED_VARLEN
from lit_eve.models.attention import PackedRows, kernels, packed_attention, packed_rows
from tests.models import tiny

PACKING = "lit_eve.models.attention.packed"
WINDOW = {"mistral_window": {"model_type": "mistral", **tiny.COMMON, "num_key_value_heads": 2, "sliding_window": 12}}
decoders = pytest.mark.parametrize("decoder", [*tiny.DECODERS, *WINDOW])


@pytest.fixture(autouse=True)
def decoder_with_a_window(monkeypatch):
    monkeypatch.setattr(tiny, "DECODERS", tiny.DECODERS | WINDOW)


# ---- the kernels of GPUs: their documented signatures, in plain arithmetic


def reference(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, scale: float | None, left: int) -> Tensor:
    """Causal attention of (T, h, d) queries within samples; ``left``: keys before the query's own that it sees, -1: all."""
    out = []
    for start, end in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
        groups = query.shape[1] // key.shape[1]
        q, k, v = query[start:end], *(x[start:end].repeat_interleave(groups, 1) for x in (key, value))
        scores = torch.einsum("qhd,khd->hqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
        distance = torch.arange(end - start)[:, None] - torch.arange(end - start)
        hidden = (distance < 0) | (distance > left if left >= 0 else False)
        out.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v))
    return torch.cat(out)


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    deterministic=False,
):
    """flash-attn 2.8: a window is (left, right), and causal attention ignores its right side."""
    assert causal and not dropout_p and not softcap and cu_seqlens_q is cu_seqlens_k
    longest = cu_seqlens_q.diff().max()
    assert isinstance(max_seqlen_q, int) and max_seqlen_q == max_seqlen_k >= longest
    return reference(q, k, v, cu_seqlens_q, softmax_scale, window_size[0])


def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
    """torch's: causal means a window that ends at 0, and fewer keys than queries must be allowed."""
    assert window_size[1] == 0 and (enable_gqa or query.shape[1] == key.shape[1])
    assert isinstance(max_q, int) and max_q == max_k >= cu_seq_q.diff().max()
    return reference(query, key, value, cu_seq_q, scale, window_size[0])


def test_the_reference_kernel_takes_what_torchs_takes():
    theirs, ours = (inspect.signature(function).parameters for function in (varlen.varlen_attn, varlen_attn))
    assert ours.keys() - theirs.keys() <= {"enable_gqa"}, "which torch has from 2.12 on"
    for name in ours.keys() & theirs.keys():
        assert theirs[name] == ours[name].replace(annotation=theirs[name].annotation)


@pytest.mark.parametrize("knows_groups", [False, True])
def test_torchs_kernel_gets_repeated_keys_where_it_knows_no_groups(monkeypatch, knows_groups):
    heads = []
    monkeypatch.setattr(kernels, "_VARLEN_KNOWS_GROUPS", knows_groups)
    monkeypatch.setattr(
        kernels, "varlen_attn", lambda *args, **kwargs: heads.append(args[1].shape[1]) or varlen_attn(*args, **kwargs)
    )
    sizes = [(1, 4, 5, 8), (1, 2, 5, 8), (1, 2, 5, 8)]
    inputs = [torch.randn(size, dtype=torch.bfloat16).requires_grad_() for size in sizes]
    module = SimpleNamespace(num_key_value_groups=2, config=SimpleNamespace(_attn_implementation=PACKED))
    results = {}
    for kernel in ("varlen", "samples"):
        packed = PackedRows(torch.tensor([0, 2, 5], dtype=torch.int32), 3, 1, 5, kernel)
        out, _ = packed_attention(module, *inputs, None, packed)
        results[kernel] = [out, *torch.autograd.grad(out.float().square().sum(), inputs)]
    assert heads == [2 if knows_groups else 4]
    for mine, theirs in zip(results["varlen"], results["samples"], strict=True):
        assert_close(mine, theirs, rtol=0.05, atol=0.05)


@pytest.fixture(params=["samples", "mask", "varlen", "flash_attn", "flash_attention_2", "sdpa", "eager"])
def implementation(request, monkeypatch) -> str:
    """An ``attn_implementation``; those of GPUs with the reference as their kernel."""
    if request.param in ("sdpa", "eager"):
        return request.param
    if request.param == "flash_attention_2":
        module = modeling_flash_attention_utils
        functions = (None, flash_attn_varlen_func, None, None, None)
        monkeypatch.setattr(module, "_loaded_implementation", None)
        monkeypatch.setattr(module, "_lazy_imports", lambda *_, **__: functions)
        return request.param
    monkeypatch.setitem(kernels.KERNELS, PACKED, lambda device: request.param)
    if request.param in ("varlen", "flash_attn"):
        monkeypatch.setattr(kernels, "obstacle_of", lambda *_: None)
        monkeypatch.setattr(kernels, "_flash_attn", lambda: flash_attn_varlen_func)
        monkeypatch.setattr(kernels, "varlen_attn", varlen_attn)
    return PACKED


@pytest.mark.parametrize(
    ("decoder", "checkpointing"),
    [
        *((decoder, False) for decoder in (*tiny.DECODERS, *WINDOW)),
        ("llama_gqa", True),
        *(pytest.param(name, True, marks=pytest.mark.slow) for name in (*tiny.DECODERS, *WINDOW) if name != "llama_gqa"),
    ],
)
def test_packed_rows_give_the_losses_and_gradients_of_their_samples_alone(decoder, implementation, checkpointing):
    model = tiny.model(decoder, with_teacher=True)
    tiny.assert_packed_like_alone(model, tiny.samples(model, [1, 0, 2, 1, 0]), implementation, checkpointing)


def test_positions_of_packed_rows_are_counted_where_they_are_missing(implementation):
    model = tiny.model()
    model.language_model.config._attn_implementation = implementation
    batch = tiny.packed([tiny.samples(model, [1, 0])])
    expected = model(**batch)
    assert_close(model(**batch | {"position_ids": None}).loss, expected.loss, rtol=0, atol=0)


def test_mask():
    packed = PackedRows(torch.tensor([0, 2, 5], dtype=torch.int32), 3, 1, 5, "mask")
    mask = packed.mask()[0, 0].int()
    assert mask.tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert packed.mask(window=2)[0, 0, 4].int().tolist() == [0, 0, 0, 1, 1]
    assert packed.mask() is packed.mask(), "one mask for all layers"


def test_the_default_needs_no_length_of_the_longest_sample():
    model = tiny.model()
    batch = tiny.packed([tiny.samples(model, [1, 0])])
    expected = model(**batch).loss
    del batch["max_seqlen"]
    assert model(**batch).loss == expected
    length = batch["input_ids"].shape[1]
    assert packed_rows(PACKED, batch["cu_seqlens"], None, 1, length)[1]["packed"].max_seqlen == length


def test_attention_dropout():
    """Values of one: what a query gets is the sum of its weights, 1 on average."""
    packed = PackedRows(torch.tensor([0, 200, 500], dtype=torch.int32), 300, 1, 500, "samples")
    query, module = torch.randn(1, 4, 500, 8), SimpleNamespace(training=True, num_key_value_groups=1)
    for kernel in ("samples", "mask"):
        packed = PackedRows(packed.cu_seqlens, 300, 1, 500, kernel)
        out, _ = packed_attention(module, query, query, torch.ones_like(query), None, packed, dropout=0.5)
        assert out.std() > 0.05 and out.mean() == pytest.approx(1, abs=0.05)


# ---- which kernel


def choose(monkeypatch, dtype=torch.bfloat16, width=64, dropout=0.0, flash=None, name=PACKED, device="meta") -> str:
    """The kernel that attention would call for such queries, on a GPU by default."""
    monkeypatch.setattr(kernels, "_flash_attn", lambda: flash)
    monkeypatch.setattr(f"{PACKING}._varlen", lambda kernel, *_: kernel)
    monkeypatch.setattr(f"{PACKING}._sample_by_sample", lambda *_: "samples")
    monkeypatch.setattr(f"{PACKING}.sdpa_attention_forward", lambda *_, **__: ("mask", None))
    _, boundaries = packed_rows(name, torch.zeros(3, dtype=torch.int32, device=device), 5, 1, 10)
    query = torch.zeros(1, 2, 10, width, dtype=dtype, device=device)
    module = SimpleNamespace(config=SimpleNamespace(_attn_implementation=name))
    return packed_attention(module, query, query, query, None, **boundaries, dropout=dropout)[0]


def test_the_best_kernel_that_fits_is_taken(monkeypatch):
    assert choose(monkeypatch) == "varlen"
    assert choose(monkeypatch, dtype=torch.float16) == "varlen"
    assert choose(monkeypatch, dtype=torch.float32) == "mask"
    assert choose(monkeypatch, width=100) == choose(monkeypatch, width=288) == "mask"
    assert choose(monkeypatch, dropout=0.1) == "mask"
    assert choose(monkeypatch, name=PACKED_SDPA) == "mask"
    assert choose(monkeypatch, device="cpu") == choose(monkeypatch, name=PACKED_SDPA, device="cpu") == "samples"
    monkeypatch.setattr(kernels, "_has_varlen", lambda device: True)
    assert choose(monkeypatch, flash=flash_attn_varlen_func, device="cpu") == "flash_attn"
    assert choose(monkeypatch, flash=flash_attn_varlen_func, device="cpu", dropout=0.1) == "flash_attn"
    assert choose(monkeypatch, device="cpu") == "varlen"
    assert choose(monkeypatch, flash=flash_attn_varlen_func, name=PACKED_VARLEN, device="cpu") == "varlen"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "cpu"}, "'packed_varlen' needs an NVIDIA GPU of compute capability 8.0"),
        ({"dtype": torch.float32}, "'packed_varlen' needs float16 or bfloat16, not float32"),
        ({"width": 100}, "'packed_varlen' needs heads of at most 256 that are a multiple of 8, not 100"),
        ({"dropout": 0.1}, "'packed_varlen' has no dropout"),
    ],
)
def test_a_kernel_that_was_asked_for_is_not_replaced_in_silence(monkeypatch, settings, message):
    with pytest.raises(LitEveError, match=message):
        choose(monkeypatch, name=PACKED_VARLEN, **settings)


def test_an_attention_that_drops_the_boundaries_is_an_error(monkeypatch):
    model = tiny.model()
    forward = packed_attention
    monkeypatch.setitem(
        ALL_ATTENTION_FUNCTIONS._global_mapping, PACKED, lambda *args, packed=None, **kwargs: forward(*args, **kwargs)
    )
    with pytest.raises(LitEveError, match="LlamaAttention does not hand the samples' boundaries"):
        model(**tiny.packed([tiny.samples(model, [1, 0])]))


@pytest.mark.parametrize(("argument", "message"), [("softcap", "caps its attention"), ("s_aux", "attention sinks")])
def test_attentions_of_another_kind_are_refused(argument, message):
    query = torch.zeros(1, 2, 3, 8)
    with pytest.raises(LitEveError, match=message):
        packed_attention(torch.nn.Module(), query, query, query, None, **{argument: 1.0})


def test_autocast_reaches_the_kernel(monkeypatch):
    """Rotated queries and keys are float32 under autocast, values are not."""
    seen = []
    monkeypatch.setattr(kernels, "_has_varlen", lambda device: True)
    monkeypatch.setattr(kernels, "_flash_attn", lambda: None)
    monkeypatch.setattr(
        kernels, "varlen_attn", lambda *args, **kwargs: seen.extend(x.dtype for x in args[:3]) or varlen_attn(*args, **kwargs)
    )
    model = tiny.model("llama_gqa")
    with torch.autocast("cpu", torch.bfloat16):
        model(**tiny.packed([tiny.samples(model, [1, 0])])).loss.backward()
    assert set(seen) == {torch.bfloat16}


def test_what_is_saved_names_no_kernel(tmp_path):
    """A model trained with flash-attn is loaded where there is none."""
    model = tiny.model()
    model.language_model.config._attn_implementation = "flash_attention_2"
    model.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert "flash" not in text and "attn_implementation" not in json.loads(text)["text_config"]
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert again.config.text_config._attn_implementation == PACKED
    chosen = AutoModelForImageTextToText.from_pretrained(tmp_path, attn_implementation=PACKED_SDPA)
    assert chosen.get_decoder().config._attn_implementation == PACKED_SDPA


@pytest.mark.parametrize("images", ["causal", pytest.param("bidirectional", marks=pytest.mark.slow)])
def test_layers_compile_without_a_break(images):
    """On the meta device, where attention is what it is on a GPU; after two batches, other samples compile nothing new.

    Nor do the hooks that read hidden states for the aligner.
    """
    model = tiny.model("llama_gqa", with_teacher=True, layer_interval=1, image_attention={"name": images})
    batches = [tiny.packed([tiny.samples(model, count)]) for count in ([1], [2, 1], [1, 1, 1])]
    model.to(torch.bfloat16).to("meta")
    for layer in model.get_decoder().layers:
        layer.compile(backend="aot_eager", fullgraph=True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    graphs = []
    for batch in batches:
        model(**{key: x.to("meta") if isinstance(x, Tensor) else x for key, x in batch.items()}).loss.backward()
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[2] == graphs[1] > 0 and graphs[1] <= 3, "of the blocks, not of each hidden state that is read"


# ---- GPU


def on_gpu(batch, **kwargs):
    return {key: x.cuda() if isinstance(x, Tensor) else x for key, x in batch.items()} | kwargs


def relative(got: Tensor, expected: Tensor) -> float:
    return float((got.cpu().float() - expected).norm() / expected.norm())


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["varlen", "flash_attn", "mask"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("heads", "groups", "window"), [(32, 1, None), (28, 7, None), (8, 2, 100)])
def test_kernels_of_the_gpu_are_the_attention_of_the_cpu(kernel, dtype, heads, groups, window):
    """Heads of 128, rows of 2048: EVE-7B's attention."""
    if kernel == "flash_attn" and kernels._flash_attn() is None:
        pytest.skip("flash-attn is not installed")
    if kernel != "mask" and dtype == torch.float32:
        pytest.skip("the kernel is for half precision")
    torch.manual_seed(0)
    lengths = torch.tensor([0, 650, 1, 700, 697, 2048])  # the last is a whole row
    cu = lengths.cumsum(0).int()
    sizes = [(2, heads, 2048, 128), *[(2, heads // groups, 2048, 128)] * 2]
    inputs = [torch.randn(size).to(dtype).float().requires_grad_() for size in sizes]
    weight = torch.randn(2, 2048, heads, 128)
    module = SimpleNamespace(num_key_value_groups=groups, config=SimpleNamespace(_attn_implementation=PACKED))
    expected, _ = packed_attention(module, *inputs, None, PackedRows(cu, 2048, 2, 2048, "samples"), sliding_window=window)
    (expected * weight).sum().backward()
    there = [x.detach().cuda().to(dtype).requires_grad_() for x in inputs]
    got, _ = packed_attention(module, *there, None, PackedRows(cu.cuda(), 2048, 2, 2048, kernel), sliding_window=window)
    (got.float() * weight.cuda()).sum().backward()
    tolerance = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-4}[dtype]
    assert relative(got.detach(), expected.detach()) < tolerance
    for mine, theirs in zip(there, inputs, strict=True):
        assert relative(mine.grad, theirs.grad) < 2 * tolerance


@pytest.mark.gpu
@pytest.mark.parametrize("implementation", [PACKED, PACKED_VARLEN, PACKED_SDPA, "flash_attention_2"])
@decoders
def test_packed_rows_on_a_gpu(decoder, implementation):
    """bfloat16 there against float32 here: as near as eager attention of the samples alone comes, give or take a factor."""
    model = tiny.model(decoder, with_teacher=True).to(torch.bfloat16).float()
    rows = tiny.samples(model, [1, 0, 2, 1, 0])
    counts = {"num_targets": sum(int((row["labels"] != -100).sum()) for row in rows), "num_images": 4}
    expected_output, expected = tiny.gradients(model, tiny.packed([rows[:2], rows[2:]]), **counts)
    model.to("cuda", torch.bfloat16)
    model.language_model.config._attn_implementation = "eager"
    _, eager = tiny.gradients(model, *[on_gpu(tiny.padded([row])) for row in rows], **counts)
    try:
        model.set_attn_implementation(implementation)
    except ImportError:
        pytest.skip("flash-attn is not installed")
    output, got = tiny.gradients(model, on_gpu(tiny.packed([rows[:2], rows[2:]])), **counts)
    assert_close(output[0].loss.cpu(), expected_output[0].loss, rtol=0.02, atol=0.02)
    for key, value in expected.items():
        assert relative(got[key], value) < 2 * relative(eager[key], value) + 0.02, key


@pytest.mark.gpu
def test_compiled_layers_on_a_gpu():
    model = tiny.model("llama_gqa", with_teacher=True).to("cuda", torch.bfloat16)
    batch = on_gpu(tiny.packed([tiny.samples(model, [1, 0, 2])]))
    (expected,), gradients_of_eager = tiny.gradients(model, batch)
    for layer in model.get_decoder().layers:
        layer.compile(fullgraph=True)
    (output,), got = tiny.gradients(model, batch)
    assert_close(output.loss, expected.loss, rtol=0.02, atol=0.02)
    for key, value in gradients_of_eager.items():
        assert relative(got[key], value.cpu().float()) < 0.05, key


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_step_does_not_wait_for_the_gpu(dtype):
    model = tiny.model("llama_gqa", with_teacher=True).to("cuda", dtype)
    batch = on_gpu(tiny.packed([tiny.samples(model, [1, 0, 2]), tiny.samples(model, [1, 1], 1)]))
    model(**batch).loss.backward()  # what is made once may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(**batch, num_targets=7, num_images=5).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
