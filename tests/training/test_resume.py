"""A run that is killed and called again is the run that was never killed, step by step."""

from __future__ import annotations

import csv
import json
import os
import resource
import shutil
import signal

import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load_file
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

import lit_eve
from lit_eve.errors import CheckpointError
from lit_eve.models.checkpoints.loading import ENTRY
from lit_eve.testing.forks import in_processes
from lit_eve.training.architecture import check_architecture
from lit_eve.training.callbacks import AtomicCheckpointIO, find_checkpoint
from lit_eve.training.cli import EveCLI, main
from tests.training import world as micro
from tests.two_processes import in_two_processes

LOSSES = ("train/loss", "train/language_loss", "train/alignment_loss", "train/gradient_norm", "lr/stage")


@pytest.fixture(scope="module")
def stage1(world, tmp_path_factory):
    """The run folder of a finished stage 1."""
    run = tmp_path_factory.mktemp("runs") / "1_prealign"
    EveCLI(args=micro.arguments(world, run))
    return run


READERS = {"data.num_workers": 1}  # a process of its own that reads, which dies and is born again with the run


def stage2(world, stage1, run, *more, **overrides):
    settings = {"model.init_from": stage1, "trainer.accumulate_grad_batches": 2} | overrides
    return [*micro.arguments(world, run, "2_pretrain", **settings), *more]


def going_on(world, run, **kwargs):
    """A module that starts from a finished run."""
    nothing_new = dict.fromkeys(("decoder", "patch_embedding", "geometry", "aligner"))
    return micro.make_module(world, init_from=str(run), **nothing_new, **kwargs)


@pytest.fixture(scope="module")
def uninterrupted(world, stage1, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "2_pretrain"
    EveCLI(args=stage2(world, stage1, run, **READERS))
    return run


def rows_of(run):
    """The rows of ``metrics.csv``, without what depends on the clock."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{tag: value for tag, value in row.items() if not tag.startswith("speed/")} for row in rows]


@pytest.mark.parametrize("saving", [pytest.param(False, marks=pytest.mark.slow), True])
def test_killed_in_stage_2_and_called_again(world, stage1, uninterrupted, tmp_path, saving):
    run = tmp_path / "2_pretrain"
    kill = "--trainer.callbacks+=tests.training.killer.KillAt"
    arguments = stage2(
        world, stage1, run, kill, "--trainer.callbacks.step=6", f"--trainer.callbacks.saving={saving}", **READERS
    )
    with pytest.raises(ProcessExitedException) as killed:
        in_processes(1, run_in_a_process, arguments)
    assert killed.value.signal_name == "SIGKILL"
    assert not (run / "model").exists()
    assert find_checkpoint(run).name == "step00000004.ckpt"
    assert len(list((run / "checkpoints").glob(".*.part"))) == saving

    EveCLI(args=stage2(world, stage1, run, **READERS))
    for tag in LOSSES:
        expected = micro.scalars(uninterrupted, tag)
        assert len(expected) == 10
        assert micro.scalars(run, tag) == expected, tag
    for tag in ("val/loss", "val/token_accuracy"):
        assert micro.scalars(run, tag) == micro.scalars(uninterrupted, tag)
    assert rows_of(run) == rows_of(uninterrupted)
    assert (run / "answers.jsonl").read_text() == (uninterrupted / "answers.jsonl").read_text()
    pictures = [{path.name: path.read_bytes() for path in folder.glob("word_maps/*")} for folder in (run, uninterrupted)]
    assert pictures[0] == pictures[1] and pictures[0]
    for file in ("model.safetensors", "aligner.safetensors"):
        ours, theirs = load_file(run / "model" / file), load_file(uninterrupted / "model" / file)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step00000010.ckpt"]


SEVERAL_EPOCHS = {"trainer.max_steps": 8, "trainer.limit_train_batches": 6, "trainer.log_every_n_steps": 3}
SEVERAL_EPOCHS |= {"trainer.val_check_interval": 1.0, "trainer.limit_val_batches": 2, "checkpoint.every_n_steps": 100}
SEVERAL_EPOCHS |= READERS


@pytest.fixture(scope="module")
def several_epochs(world, stage1, tmp_path_factory):
    """With lines that are means of three steps."""
    run = tmp_path_factory.mktemp("runs") / "several_epochs"
    EveCLI(args=stage2(world, stage1, run, **SEVERAL_EPOCHS))
    return run


@pytest.mark.parametrize("signum", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_stopped_by_a_signal_and_called_again(world, stage1, several_epochs, tmp_path, signum):
    """The signal comes in the middle of a step."""
    whole, run, several = several_epochs, tmp_path / "run", SEVERAL_EPOCHS
    assert [row["step"] for row in rows_of(whole)] == ["3", "6", "8"] and all(row["val/loss"] for row in rows_of(whole))
    before = signal.getsignal(signum)
    stop = {"step": 4, "signum": int(signum)}
    arguments = stage2(world, stage1, run, "--trainer.callbacks+=tests.training.killer.SignalAt", **several)
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, *(f"--trainer.callbacks.{key}={value}" for key, value in stop.items())])
    assert stopped.value.code == 128 + signum and signal.getsignal(signum) is before
    assert find_checkpoint(run).name == "step00000004.ckpt" and not (run / "model").exists()
    assert json.loads((run / "metrics.json").read_text())["finished"] is False
    EveCLI(args=stage2(world, stage1, run, **several))
    assert rows_of(run) == rows_of(whole)
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (run, whole))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    record = json.loads((run / "metrics.json").read_text())
    assert record["finished"] and record["step"] == 8 and record["seconds"] > 0
    with (run / "metrics.csv").open(newline="") as file:
        seconds = [float(row["speed/seconds"]) for row in csv.DictReader(file)]
    assert 0 < seconds[0] < seconds[1] < seconds[2] <= record["seconds"], "they go on where they were"
    assert record["metrics"]["val/loss"] == float(rows_of(whole)[-1]["val/loss"])
    assert record["seeds"] == {"seed_everything": 0, "data": 0}


class FailAt(Callback):
    """An error in the middle of the validation of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_validation_batch_end(self, trainer, *args, **kwargs):
        if trainer.global_step == self.step:
            raise RuntimeError("the machine is gone")


EPOCHS = {"trainer.limit_train_batches": 8, "trainer.val_check_interval": 1.0}  # of four steps


@pytest.mark.parametrize(
    ("interval", "log_every"),
    [
        pytest.param({"trainer.val_check_interval": 8}, 1, id="step", marks=pytest.mark.slow),
        pytest.param(EPOCHS, 1, id="epoch", marks=pytest.mark.slow),
        pytest.param(EPOCHS, 3, id="row"),
    ],
)
def test_killed_in_a_validation_and_called_again(world, stage1, tmp_path, interval, log_every):
    """The step's checkpoint is there, and its validation is not lost: within an epoch, at its end, in a row of its own."""
    several = interval | {"trainer.limit_val_batches": 2, "trainer.max_steps": 6, "trainer.log_every_n_steps": log_every}
    whole, run = tmp_path / "whole", tmp_path / "run"
    EveCLI(args=stage2(world, stage1, whole, **several))
    assert [row["step"] for row in rows_of(whole) if row["val/loss"]] == ["4", "6"]
    with pytest.raises(RuntimeError, match="gone"):
        fail = "--trainer.callbacks+=tests.training.test_resume.FailAt"
        EveCLI(args=stage2(world, stage1, run, fail, "--trainer.callbacks.step=4", **several))
    assert find_checkpoint(run).name == "step00000004.ckpt" and "val/loss" not in rows_of(run)[-1]
    EveCLI(args=stage2(world, stage1, run, **several))
    assert rows_of(run) == rows_of(whole)
    assert (run / "answers.jsonl").read_text() == (whole / "answers.jsonl").read_text()


def test_a_signal_at_the_last_batch_of_an_epoch_and_of_a_run(world, stage1, tmp_path):
    """What it is validated for is done after the restart; the last step of a run is the end of it."""
    several = {"trainer.limit_train_batches": 3, "trainer.val_check_interval": 1.0, "trainer.limit_val_batches": 2}
    several |= {"trainer.accumulate_grad_batches": 1, "trainer.max_steps": 5, "checkpoint.every_n_steps": 100}
    whole, run = tmp_path / "whole", tmp_path / "run"
    EveCLI(args=stage2(world, stage1, whole, **several))
    assert [row["step"] for row in rows_of(whole) if row["val/loss"]] == ["3", "5"]
    stop = ["--trainer.callbacks+=tests.training.killer.SignalAt", f"--trainer.callbacks.signum={int(signal.SIGTERM)}"]
    with pytest.raises(SystemExit):
        main([*stage2(world, stage1, run, **several), *stop, "--trainer.callbacks.step=2"])
    assert find_checkpoint(run).name == "step00000003.ckpt" and "val/loss" not in rows_of(run)[-1]
    with pytest.raises(SystemExit):  # in the epoch that began with a restart
        main([*stage2(world, stage1, run, **several), *stop, "--trainer.callbacks.step=3"])
    main([*stage2(world, stage1, run, **several), *stop, "--trainer.callbacks.step=4"])
    assert rows_of(run) == rows_of(whole)
    assert (run / "model").exists() and json.loads((run / "metrics.json").read_text())["finished"]


HALVES = {"trainer.limit_train_batches": 7, "trainer.val_check_interval": 0.5, "trainer.max_epochs": 2}
HALVES |= {"trainer.max_steps": -1, "trainer.limit_val_batches": 2, "checkpoint.every_n_steps": 1}


def validated(run):
    return [int(row["step"]) for row in rows_of(run) if row["val/loss"]]


@pytest.mark.parametrize(("accumulate", "steps"), [pytest.param(1, [4, 7, 11, 14], marks=pytest.mark.slow), (2, [2, 4, 6, 8])])
def test_parts_of_an_epoch_end_with_it(world, stage1, tmp_path, accumulate, steps):
    """Halves of seven batches are four and three, and the end is validated once; killed in each validation, and between."""
    several = HALVES | {"trainer.accumulate_grad_batches": accumulate}
    whole, run = tmp_path / "whole", tmp_path / "run"
    EveCLI(args=stage2(world, stage1, whole, **several))
    assert validated(whole) == steps
    arguments = stage2(world, stage1, run, **several)
    for step in steps[:-1]:
        with pytest.raises(RuntimeError, match="gone"):
            EveCLI(
                args=[*arguments, "--trainer.callbacks+=tests.training.test_resume.FailAt", f"--trainer.callbacks.step={step}"]
            )
        assert find_checkpoint(run).name == f"step{step:08}.ckpt"
    stop = ["--trainer.callbacks+=tests.training.killer.SignalAt", f"--trainer.callbacks.signum={int(signal.SIGTERM)}"]
    with pytest.raises(SystemExit):
        main([*arguments, *stop, f"--trainer.callbacks.step={steps[-1] - 2}"])
    EveCLI(args=arguments)
    assert rows_of(run) == rows_of(whole)


@pytest.mark.slow
def test_parts_of_an_epoch_in_two_processes(world, tmp_path):
    several = HALVES | {"trainer.devices": 2, "trainer.strategy": "ddp", "trainer.max_epochs": 1}
    whole, run = tmp_path / "whole", tmp_path / "run"
    in_two_processes(run_in_a_process, micro.arguments(world, whole, **several))
    assert validated(whole) == [4, 7]
    arguments = micro.arguments(world, run, **several)
    with pytest.raises(ProcessRaisedException, match="gone"):
        fail = ["--trainer.callbacks+=tests.training.test_resume.FailAt", "--trainer.callbacks.step=4"]
        in_two_processes(run_in_a_process, [*arguments, *fail])
    assert find_checkpoint(run).name == "step00000004.ckpt" and "val/loss" not in rows_of(run)[-1]
    in_two_processes(run_in_a_process, arguments)
    assert rows_of(run) == rows_of(whole)


def test_an_interval_in_batches_is_taken_at_its_word(world, stage1, tmp_path):
    several = HALVES | {"trainer.val_check_interval": 3, "trainer.accumulate_grad_batches": 1}
    EveCLI(args=stage2(world, stage1, tmp_path, **several))
    assert validated(tmp_path) == [3, 6, 9, 12, 14]


def run_in_a_process(arguments):
    EveCLI(args=arguments)


def both_stop(folder, arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    (folder / f"rank-{os.environ['RANK']}").write_text(str(stopped.value.code))


def test_a_signal_that_one_of_two_processes_hears_stops_both_at_one_step(world, tmp_path):
    more = {"trainer.devices": 2, "trainer.strategy": "ddp", "checkpoint.every_n_steps": 100, "trainer.limit_val_batches": 0}
    arguments = micro.arguments(world, tmp_path / "run", **more)
    stop = {"step": 3, "signum": int(signal.SIGTERM), "rank": 1}
    arguments.append("--trainer.callbacks+=tests.training.killer.SignalAt")
    arguments += [f"--trainer.callbacks.{key}={value}" for key, value in stop.items()]
    in_two_processes(both_stop, tmp_path, arguments)
    assert [(tmp_path / f"rank-{rank}").read_text() for rank in (0, 1)] == [str(128 + signal.SIGTERM)] * 2
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step00000005.ckpt"]


def test_a_finished_run_called_again_changes_nothing(world, stage1, uninterrupted, tmp_path):
    run = shutil.copytree(uninterrupted, tmp_path / "2_pretrain")
    weights, checkpoint = load_file(run / "model" / "model.safetensors"), find_checkpoint(run)
    cli = EveCLI(args=stage2(world, stage1, run))
    assert cli.trainer.global_step == 10
    assert find_checkpoint(run) == checkpoint
    again = load_file(run / "model" / "model.safetensors")
    assert all(torch.equal(weights[key], again[key]) for key in weights)


def test_the_end_is_saved_and_holds_no_teacher(uninterrupted):
    """10 steps with a checkpoint every 4: the last one is the end."""
    checkpoints = [path.name for path in (uninterrupted / "checkpoints").iterdir()]
    assert checkpoints == ["step00000010.ckpt"]
    checkpoint = torch.load(uninterrupted / "checkpoints" / checkpoints[0], weights_only=True)
    keys = checkpoint["state_dict"].keys()
    assert any(key.startswith("model.aligner.") for key in keys)
    assert not any("teacher" in key for key in keys)
    names = [name for group in checkpoint["optimizer_states"][0]["param_groups"] for name in group["param_names"]]
    assert names and not any("teacher" in name for name in names)


def test_a_checkpoint_loads_on_its_own(uninterrupted):
    model, processor = lit_eve.load(find_checkpoint(uninterrupted))
    exported, _ = lit_eve.load(uninterrupted)
    for (name, ours), theirs in zip(model.state_dict().items(), exported.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert processor.geometry == model.geometry


def test_a_checkpoint_of_another_architecture(world, uninterrupted, tmp_path):
    module = micro.make_module(world, projector={"name": "mlp_gelu", "depth": 3})
    with pytest.raises(CheckpointError, match=r"another architecture .*projector.depth: 2 -> 3"):
        micro.trainer(tmp_path).validate(module, micro.loader([]), ckpt_path=find_checkpoint(uninterrupted), verbose=False)


def test_a_checkpoint_of_another_image_attention(world, uninterrupted, tmp_path):
    """Also one that was written before there was any."""
    checkpoint = torch.load(find_checkpoint(uninterrupted), weights_only=True)
    config = json.loads(checkpoint[ENTRY]["config"])
    assert config.pop("image_attention") == {"name": "causal"}
    checkpoint[ENTRY]["config"] = json.dumps(config)
    projector = {"name": "mlp_gelu", "depth": 2}
    module = micro.make_module(world, projector=projector)
    other = micro.make_module(world, projector=projector, image_attention={"name": "bidirectional"})
    module.configure_model()
    other.configure_model()
    check_architecture(checkpoint, module)
    with pytest.raises(CheckpointError, match=r"another architecture .*image_attention.name: 'causal' -> 'bidirectional'"):
        check_architecture(checkpoint, other)


def test_weights_of_another_shape_are_named(world, uninterrupted, tmp_path):
    """A config that says the same and weights that do not, as after a change of the code."""
    broken = tmp_path / "step00000010.ckpt"
    checkpoint = torch.load(find_checkpoint(uninterrupted), weights_only=True)
    checkpoint["state_dict"]["model.projector.0.weight"] = torch.zeros(3)
    del checkpoint["state_dict"]["model.projector.0.bias"]
    torch.save(checkpoint, broken)
    module = micro.make_module(
        world, decoder=None, init_from=str(uninterrupted), patch_embedding=None, geometry=None, aligner=None
    )
    with pytest.raises(CheckpointError, match=r"projector.0.bias: None -> \(32,\); model.projector.0.weight: \(3,\) ->"):
        micro.trainer(tmp_path).validate(module, micro.loader([]), ckpt_path=broken, verbose=False)


def test_a_stage_does_not_resume_another_one(world, uninterrupted, tmp_path):
    module = going_on(world, uninterrupted, stage="prealign")
    module.configure_model()
    batches = micro.make_batches(module, [[[[1]]]] * 12)
    with pytest.raises(CheckpointError, match="cannot resume: the checkpoint trained other parameters.*language_model"):
        micro.trainer(tmp_path).fit(module, micro.loader(batches), ckpt_path=find_checkpoint(uninterrupted))


def test_a_restarted_job_goes_on_though_it_was_told_to_begin_anew(world, stage1, uninterrupted, tmp_path, monkeypatch):
    """torchrun and SLURM repeat the command line of the first attempt."""
    shutil.copytree(uninterrupted, tmp_path / "run")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert EveCLI(args=stage2(world, stage1, tmp_path / "run", "--resume=never")).trainer.global_step == 10
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    EveCLI(args=stage2(world, stage1, tmp_path / "run", "--resume=never", **{"trainer.max_steps": 1}))
    assert (tmp_path / "run.1" / "config.yaml").exists()


# ---- files


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path):
    io, path = AtomicCheckpointIO(), tmp_path / "checkpoints" / "step00000001.ckpt"
    io.save_checkpoint({"step": torch.tensor(1)}, path)

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))  # bytes of a file
    try:
        with pytest.raises(CheckpointError, match=r"step00000001.ckpt could not be written \(.*too large.*\).*still there"):
            io.save_checkpoint({"step": torch.zeros(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert io.load_checkpoint(path)["step"] == 1
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_newest_whole_checkpoint_is_found(tmp_path):
    assert find_checkpoint(tmp_path) is None
    io, folder = AtomicCheckpointIO(), tmp_path / "checkpoints"
    for step in (4, 8, 12):
        io.save_checkpoint({"step": torch.tensor(step)}, folder / f"step{step:08d}.ckpt")
    whole = (folder / "step00000012.ckpt").read_bytes()
    (folder / "step00000012.ckpt").write_bytes(whole[: len(whole) // 2])
    (folder / ".step00000016.ckpt.part").write_bytes(whole)
    (folder / "last.ckpt").symlink_to("gone.ckpt")
    sharded = folder / "step00000020.ckpt"
    sharded.mkdir()
    torch.save({}, sharded / "meta.pt")
    assert find_checkpoint(tmp_path).name == "step00000008.ckpt"
    (sharded / ".metadata").touch()
    assert find_checkpoint(tmp_path) == sharded
    (sharded / "meta.pt").write_bytes((sharded / "meta.pt").read_bytes()[:-30])
    assert find_checkpoint(tmp_path).name == "step00000008.ckpt"


@pytest.mark.parametrize(("keep", "steps"), [(2, [8, 10]), pytest.param(-1, [4, 8, 10], marks=pytest.mark.slow)])
def test_as_many_checkpoints_stay_as_asked_for(world, stage1, tmp_path, keep, steps):
    """One is what stays of other runs here; test_fsdp.py goes on from those of which all stay."""
    EveCLI(args=stage2(world, stage1, tmp_path, **{"checkpoint.keep": keep}))
    assert sorted(int(path.stem[4:]) for path in (tmp_path / "checkpoints").iterdir()) == steps


class Draws(Callback):
    """Random numbers that each step would use."""

    def __init__(self):
        self.drawn = {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.drawn[trainer.global_step] = torch.rand(1).item()


def test_random_numbers_of_a_step_do_not_depend_on_where_the_run_began(world, tmp_path):
    module = micro.make_module(world)
    module.configure_model()
    batches = micro.make_batches(module, [[[[1]]]] * 4)
    drawn = []
    for noise in (0, 5):
        torch.rand(noise)  # whatever was drawn before: a sampled answer, a validation
        micro.trainer(tmp_path, callbacks=[draws := Draws()]).fit(module, micro.loader(batches))
        drawn.append(draws.drawn)
    assert drawn[0] == drawn[1] and len(set(drawn[0].values())) == 4
