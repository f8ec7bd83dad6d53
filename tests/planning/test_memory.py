"""The memory that is planned on the meta device against that of real steps, as torch's own memory trackers see it."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from jsonargparse import Namespace
from torch._guards import active_fake_mode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from lit_eve.errors import ConfigError
from lit_eve.models import EveForConditionalGeneration
from lit_eve.planning.memory import Holdings, Layout, LiveBytes, Memory, measure, meta_batch
from lit_eve.training.optimizers import build_optimizer, trained_parameters
from tests.models import tiny

DECODER = {"vocab_size": 997, "hidden_size": 128, "intermediate_size": 352, "num_attention_heads": 4}
SUPERVISIONS = [{"name": "next_patch"}, {"name": "distillation"}, {"name": "masked_patches"}]
RANKS = 4
STEPS = 2  # the first has no moments of Adam yet


@pytest.fixture
def student(monkeypatch):
    """Makes a model, a packed batch of one row, and what the row holds."""

    def make(layers: int, images: list[int], with_teacher: bool, kind: str = "dense", supervision=None):
        monkeypatch.setitem(tiny.DECODERS, "larger", {"model_type": "llama", "num_hidden_layers": layers, **DECODER})
        model = tiny.model("larger", with_teacher=with_teacher, decoder_kind={"name": kind}, supervision=supervision).train()
        samples = tiny.samples(model, images)
        batch = tiny.packed([samples])
        batch["max_seqlen"] = int(batch["cu_seqlens"].diff().max())
        batch["image_positions"] = (batch["input_ids"].flatten() == model.config.image_token_id).nonzero().flatten()
        batch["image_seeds"] = torch.arange(len(batch["image_grid_hw"]))
        counts = {"images": "image_grid_hw", "slots": "image_positions"}
        counts |= {"patches": "pixel_values", "targets": "target_positions"}
        row = {key: len(batch[name]) for key, name in counts.items()}
        row |= {"samples": len(batch["cu_seqlens"]) - 1, "longest": batch["max_seqlen"]}
        return model, batch, row

    return make


def make_optimizer(name: str, model) -> torch.optim.Optimizer:
    """Over what trains; the teacher does not."""
    names = [name for name, p in model.named_parameters() if p.requires_grad and not name.startswith("teacher.")]
    settings = {"ns_dtype": "bfloat16"} if name == "muon" else {}  # as on GPUs; CPUs that are slow in it would take float32
    return build_optimizer({"name": name} | settings, trained_parameters(model, dict.fromkeys(names, 1e-3)))


def planned(model, row, batch, checkpointing, layout, optimizer) -> Memory:
    """What the plan says, from a model on the meta device."""
    with torch.device("meta"):
        meta = EveForConditionalGeneration(copy.deepcopy(model.config))
        if model.teacher is not None:
            meta.attach_teacher(tiny.teacher(), model.config.aligner)
    meta = meta.to(layout.computed)
    batch = meta_batch(meta, 1, batch["input_ids"].shape[1], row)
    return Holdings(meta, {"name": optimizer}).memory(layout, measure(meta, batch, checkpointing))


def test_what_a_schedule_leaves_out_for_a_time_is_planned_for(student):
    model, batch, row = student(2, [5, 4], True, supervision=[{"name": "distillation"}])
    layout = Layout(1, False, 1, torch.bfloat16, torch.bfloat16)
    always = planned(model, row, batch, True, layout, "adamw")
    model.config.supervision = [{"name": "distillation", "weight": [[0.0, 1.0], [0.5, 0.0]]}]
    assert planned(model, row, batch, True, layout, "adamw") == always


@pytest.mark.parametrize(
    ("checkpointing", "optimizer", "kind", "supervision"),
    [
        (False, "adamw", "experts", None),
        *(
            pytest.param(checkpointing, optimizer, kind, None, marks=pytest.mark.slow)
            for checkpointing, optimizer, kind in (
                (True, "adamw", "dense"),
                (False, "adamw", "dense"),
                (True, "muon", "dense"),  # test_fsdp2 has it too
                (True, "adamw", "experts"),
            )
        ),
        (True, "adamw", "dense", SUPERVISIONS),
        (
            True,
            "adamw",
            "dense",
            [{"name": "trained_teacher", "aligner": {"name": "layerwise", "layer_interval": 1, "num_heads": 4}}],
        ),
        pytest.param(False, "adamw", "dense", SUPERVISIONS, marks=pytest.mark.slow),
    ],
)
def test_one_device(student, checkpointing, optimizer, kind, supervision):
    dtype = torch.bfloat16
    model, batch, row = student(2, [5, 4], True, kind, supervision)
    model.to(dtype)
    plan = planned(model, row, batch, checkpointing, Layout(1, False, 1, dtype, dtype), optimizer)

    if checkpointing:
        model.recompute_blocks()
    model.teacher.requires_grad_(True)  # the tracker takes no frozen weights; these get no gradient all the same
    optimizer = make_optimizer(optimizer, model)
    tracker = MemTracker()
    tracker.track_external(model, optimizer, *(value for value in batch.values() if isinstance(value, torch.Tensor)))
    with tracker:
        for _ in range(STEPS):
            for _ in range(2):  # micro-batches: gradients are there before the second begins
                tracker.reset_mod_stats()
                model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    seen = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    kind = lambda name: next(size for key, size in seen.items() if str(key).endswith(name))  # noqa: E731
    assert plan.weights + plan.teacher == pytest.approx(kind("PARAM"), rel=0.02)
    assert plan.gradients == pytest.approx(kind("GRAD"), rel=0.02)
    assert plan.optimizer == pytest.approx(kind("OPT"), rel=0.02)
    seen_in_step = kind("ACT") + kind("TEMP") + kind("OTH")  # the last are the inputs
    assert plan.activations + plan.temporary == pytest.approx(seen_in_step, rel=0.1)
    assert plan.total - plan.reserved == pytest.approx(kind("Total"), rel=0.05)


@pytest.fixture
def ranks():
    """A process group whose other members are imagined: collectives allocate what they would, and move nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)
    yield init_device_mesh("cpu", (RANKS,))
    dist.destroy_process_group()


class ShardTracker(FSDPMemTracker):
    """Passes over the tensors by which DTensor infers whole shapes: they take no memory, and torch 2.11 counts them."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if active_fake_mode() is not None:
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_fsdp2(student, ranks, optimizer):
    model, batch, row = student(4, [1, 0], with_teacher=False)  # a small batch: what is measured here is sharding
    plan = planned(model, row, batch, True, Layout(RANKS, True, 1, torch.float32, torch.bfloat16), optimizer)

    model.recompute_blocks()
    settings = {"mesh": ranks, "mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)}
    for block in model.get_decoder().layers:
        fully_shard(block, **settings)
    fully_shard(model, **settings)
    optimizer = make_optimizer(optimizer, model)
    tracker = ShardTracker(model, optimizer)
    tracker.track_inputs(tuple(value for value in batch.values() if isinstance(value, torch.Tensor)))
    with tracker:
        for _ in range(STEPS):
            for _ in range(2):
                model(**batch).loss.backward()
                tracker.reset_mod_stats()
            optimizer.step()
            optimizer.zero_grad()
    seen = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    kind = lambda name: next(size for key, size in seen.items() if str(key).endswith(name))  # noqa: E731
    print({str(k): v for k, v in seen.items()}, plan)
    assert plan.weights == pytest.approx(kind(".SHARDED_PARAM"), rel=0.02)
    assert plan.gradients == pytest.approx(kind(".SHARDED_GRAD"), rel=0.02)
    assert plan.optimizer == pytest.approx(kind("OPT"), rel=0.02)
    # What needs most of each kind may not come at the same moment: the plan is an upper bound, and a close one.
    assert kind("Total") <= plan.total - plan.reserved <= 1.15 * kind("Total")
    # Gradients that are being made count as temporary there.
    in_step = sum(kind(name) for name in ("UNSHARDED_PARAM", "ALL_GATHER", "REDUCE_SCATTER", "ACT", "TEMP", "INP"))
    assert in_step <= plan.copies + plan.activations + plan.temporary <= 1.25 * in_step


def test_live_bytes_count_storages_once():
    weight = torch.zeros(100)
    with LiveBytes([weight]) as live:
        kept = torch.zeros(10)  # 40 bytes
        view = kept.view(2, 5)
        assert (live.now, view.sum().nbytes) == (40, 4)
        weight.view(10, 10)  # no new storage
        torch.zeros(1000)  # gone at once
        del view
        assert (live.now, live.peak) == (40, 4040)
        del kept
        assert live.now == 0


@pytest.mark.parametrize(
    ("strategy", "precision", "layout"),
    [
        ("fsdp2", "bf16-mixed", Layout(8, True, 1, torch.float32, torch.bfloat16)),
        ({"class_path": "lit_eve.training.FSDP2Strategy", "init_args": {"replicas": 2}}, "bf16-true", (4, True, 2)),
        ("auto", None, Layout(1, False, 8, torch.float32, torch.float32)),
        ("ddp", "32-true", Layout(1, False, 8, torch.float32, torch.float32)),
    ],
)
def test_layouts(strategy, precision, layout):
    if isinstance(layout, tuple):
        layout = Layout(*layout, torch.bfloat16, torch.bfloat16)
    assert Layout.of(Namespace(strategy=strategy, precision=precision), 8) == layout


@pytest.mark.parametrize(
    ("strategy", "precision", "message"),
    [
        ("deepspeed", "bf16-mixed", "trainer.strategy: no plan can be made for 'deepspeed'"),
        ("fsdp2", "64-true", "trainer.precision: no plan can be made for '64-true'"),
        ({"class_path": "FSDP2Strategy", "init_args": {"replicas": 3}}, None, "8 GPUs cannot be shared out to replicas = 3"),
    ],
)
def test_unknown_layouts(strategy, precision, message):
    with pytest.raises(ConfigError, match=message):
        Layout.of(Namespace(strategy=strategy, precision=precision), 8)
