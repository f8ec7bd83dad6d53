"""A run that was stopped and started again trains on the same batches with the same losses as one that never stopped."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from made_shards import write_shards
from recorder import Recorder, run, train
from torch.multiprocessing import ProcessExitedException

from lit_eve.data import EveDataModule
from lit_eve.errors import ConfigError
from lit_eve.processing import EveProcessor
from lit_eve.testing.forks import in_processes

VALIDATE = {"limit_val_batches": 1, "val_check_interval": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 samples: 28 rows, 14 batches of 2."""
    folder = tmp_path_factory.mktemp("resume")
    write_shards(folder, 60)
    return folder


def data(folder: Path, **options: Any) -> EveDataModule:
    defaults = {"train": str(folder), "validation": str(folder), "max_tokens": 512, "rows": 2, "num_workers": 0}
    return EveDataModule(**defaults | options)


def trace(entries: list[dict[str, Any]]) -> list[tuple]:
    return [(e["epoch"], e["step"], e["ids"], e["targets"], e["loss"], e["weight"]) for e in entries]


class SaveAlways(Callback):
    """A checkpoint at every moment at which Lightning may write one; named by the number of micro-batches before it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.batches = self.saved = 0

    def save(self, trainer: Trainer, moment: str) -> None:
        self.saved += 1
        trainer.save_checkpoint(self.folder / f"{self.saved:03d}-{self.batches}-{moment}.ckpt")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.batches += 1
        self.save(trainer, "batch")

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        self.save(trainer, "validation")

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        self.save(trainer, "epoch")

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        self.save(trainer, "end")


class StopAfter(Callback):
    """Ask for the end in good order, as ``max_time`` does."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.batches -= 1
        trainer.should_stop = self.batches == 0


class Fail(Callback):
    """An exception in the middle of a batch."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_before_backward(self, trainer: Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch:
            raise RuntimeError("power cut")


def is_resumable(full: list[tuple], first: list[tuple], rest: list[tuple], batches: int, accumulate: int) -> bool:
    """The rest begins after ``batches``, or at the start of the step that they end in, and equals the uninterrupted run."""
    again = len(rest) - (len(full) - batches)
    return first == full[: len(first)] and rest == full[len(full) - len(rest) :] and 0 <= again < accumulate


CASES = {
    "epochs": ({"max_epochs": 2}, {}, 0),
    "accumulation": ({"max_epochs": 2, "accumulate_grad_batches": 3}, {}, 0),
    "validation inside": ({"max_epochs": 2} | VALIDATE, {}, 0),
    "validation after": ({"max_epochs": 2, "limit_val_batches": 1}, {}, 0),
    "steps": ({"max_steps": 9, "max_epochs": -1, "accumulate_grad_batches": 2} | VALIDATE, {}, 0),
    "short epochs": ({"max_epochs": 3, "limit_train_batches": 5, "accumulate_grad_batches": 2}, {}, 0),
    "more steps": ({"max_steps": 20, "max_epochs": -1}, {"max_steps": 32}, 0),
    "more epochs": ({"max_epochs": 1, "limit_val_batches": 1}, {"max_epochs": 2}, 0),
    "stopped in a step": ({"max_epochs": 2, "accumulate_grad_batches": 3} | VALIDATE, {}, 19),
}


@pytest.mark.parametrize("case", CASES)
def test_every_checkpoint_resumes_exactly(folder: Path, tmp_path: Path, processor: EveProcessor, case: str) -> None:
    options, later, stop = CASES[case]
    never, before = Recorder(processor), Recorder(processor)
    train(never, data(folder), tmp_path, **options | later)
    train(before, data(folder), tmp_path, callbacks=[SaveAlways(tmp_path)] + [StopAfter(stop)] * bool(stop), **options)
    full = trace(never.seen)
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    others = [path for path in checkpoints if "batch" not in path.name]
    at_the_end = [path for path in checkpoints if "-14-" in path.name]  # of the first epoch, where most can go wrong
    for checkpoint in sorted({checkpoints[3], checkpoints[-4], *at_the_end, *others[-3:], *others[:1]}):
        after = Recorder(processor)
        train(after, data(folder), tmp_path, checkpoint, **options | later)
        batches = int(checkpoint.stem.split("-")[1])
        assert is_resumable(full, trace(before.seen), trace(after.seen), batches, options.get("accumulate_grad_batches", 1)), (
            checkpoint.name
        )


@pytest.mark.parametrize("workers, ask_for_steps", [((0, 2), True), ((2, 0), True), ((2, 1), False)])
def test_workers_may_change(
    folder: Path, tmp_path: Path, processor: EveProcessor, workers: tuple[int, int], ask_for_steps: bool
) -> None:
    never, before, after = (Recorder(processor, ask_for_steps=ask_for_steps) for _ in range(3))
    options = {"max_epochs": 2, "accumulate_grad_batches": 2} | VALIDATE
    train(never, data(folder), tmp_path, **options)
    train(before, data(folder, num_workers=workers[0]), tmp_path, callbacks=[SaveAlways(tmp_path)], **options)
    assert trace(never.seen) == trace(before.seen)
    (checkpoint,) = tmp_path.glob("*-5-batch.ckpt")
    train(after, data(folder, num_workers=workers[1]), tmp_path, checkpoint, **options)
    assert trace(after.seen) == trace(never.seen)[4:]  # batch 5 lies in the step that began with batch 4


def test_limited_epochs_do_not_leave_batches_behind_in_the_workers(folder: Path, tmp_path: Path, processor) -> None:
    runs = []
    for workers in (0, 2):
        runs.append(Recorder(processor))
        train(
            runs[-1], data(folder, num_workers=workers), tmp_path, max_epochs=3, limit_train_batches=3, num_sanity_val_steps=1
        )
    assert trace(runs[0].seen) == trace(runs[1].seen) and len(runs[0].seen) == 9


def test_an_exception_loses_no_batch(folder: Path, tmp_path: Path, processor: EveProcessor) -> None:
    never, before, after = Recorder(processor), Recorder(processor), Recorder(processor)
    train(never, data(folder), tmp_path, accumulate_grad_batches=2)
    saver = ModelCheckpoint(tmp_path, save_on_exception=True, every_n_epochs=100)
    with pytest.raises(RuntimeError, match="power cut"):
        train(before, data(folder), tmp_path, callbacks=[saver, Fail(7)], accumulate_grad_batches=2)
    (checkpoint,) = tmp_path.glob("*.ckpt")
    train(after, data(folder), tmp_path, checkpoint, accumulate_grad_batches=2)
    assert trace(after.seen) == trace(never.seen)[6:]


def test_every_epoch_has_every_sample_in_another_order(folder: Path, tmp_path: Path, processor: EveProcessor) -> None:
    module = Recorder(processor)
    train(module, data(folder), tmp_path, max_epochs=3)
    epochs = [[key for e in module.seen if e["epoch"] == epoch for key in e["ids"]] for epoch in range(3)]
    assert all(sorted(epoch) == [f"s{i:05d}" for i in range(60)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_window_carries_the_sum_of_its_targets(folder: Path, processor: EveProcessor, tmp_path: Path) -> None:
    """14 batches in windows of 4, 4, 4 and 2; one by one they have targets of their own."""

    class Sums(Recorder):
        def training_step(self, batch: dict[str, Any], batch_idx: int):
            self.images.append(int(batch["num_images"]))
            self.own.append((int((batch["labels"] != -100).sum()), len(batch["image_grid_hw"])))
            return super().training_step(batch, batch_idx)

    module = Sums(processor)
    module.images, module.own = [], []
    train(module, data(folder), tmp_path, accumulate_grad_batches=4)
    assert len(module.own) == 14
    for start in range(0, 14, 4):
        targets, images = (sum(pair[i] for pair in module.own[start : start + 4]) for i in (0, 1))
        window = slice(start, start + 4)
        assert {e["targets"] for e in module.seen[window]} == {targets} and set(module.images[window]) == {images}


def test_overfit_batches_are_the_same_in_every_epoch(folder: Path, tmp_path: Path, processor: EveProcessor) -> None:
    module = Recorder(processor)
    train(module, data(folder), tmp_path, max_epochs=3, overfit_batches=2)
    ids = [e["ids"] for e in module.seen]
    assert len(ids) == 6 and ids[:2] == ids[2:4] == ids[4:]


def test_a_checkpoint_inside_a_global_batch_is_refused(folder: Path, tmp_path: Path, processor: EveProcessor) -> None:
    train(Recorder(processor), data(folder), tmp_path, callbacks=[SaveAlways(tmp_path)], max_steps=1, max_epochs=-1)
    (checkpoint,) = tmp_path.glob("*-1-batch.ckpt")
    with pytest.raises(ConfigError, match="after 2 rows of epoch 0, no multiple of data.rows x ranks = 3 x 1"):
        train(Recorder(processor), data(folder, rows=3), tmp_path, checkpoint)


def test_other_data_than_before_is_warned_about(folder: Path, tmp_path: Path, processor, caplog) -> None:
    train(Recorder(processor), data(folder), tmp_path, callbacks=[SaveAlways(tmp_path)], max_steps=1, max_epochs=-1)
    (checkpoint,) = tmp_path.glob("*-1-batch.ckpt")
    train(Recorder(processor), data(folder, max_tokens=1024), tmp_path, checkpoint)
    assert "the data or its settings changed since the checkpoint" in caplog.text


def test_the_loader_works_without_a_trainer(folder: Path, processor: EveProcessor) -> None:
    def loader():
        module = data(folder).attach(processor)
        module.setup()
        return module.train_dataloader()

    one, two = loader(), loader()
    one.set_epoch(1)
    ids = []
    for number, batch in enumerate(one):
        ids.append(batch["sample_ids"])
        if number == 4:
            two.load_state_dict(one.state_dict())
    assert [batch["sample_ids"] for batch in two] == ids[5:] and len(ids) == len(two) == 14


# ---- runs in processes of their own


def launch(processes: int, folder: Path, **task: Any) -> None:
    """A run of recorder.py."""
    folder.mkdir(parents=True, exist_ok=True)
    in_processes(processes, partial(run, folder=folder, **task))


def lines(folder: Path, rank: int = 0) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"log.jsonl.{rank}").read_text().splitlines()]


def test_killed_and_started_again(folder: Path, tmp_path: Path, processor: EveProcessor) -> None:
    """SIGKILL in the second epoch, two steps after the last checkpoint, with two workers; then without workers."""
    never, after = Recorder(processor), Recorder(processor)
    train(never, data(folder), tmp_path, max_epochs=2)
    with pytest.raises(ProcessExitedException) as killed:
        launch(
            1,
            tmp_path / "killed",
            shards=folder,
            kill=19,
            data={"rows": 2, "num_workers": 2},
            trainer={"max_epochs": 2},
            checkpoint={"every_n_train_steps": 4},
        )
    assert killed.value.signal_name == "SIGKILL"
    full = trace(never.seen)
    assert trace(lines(tmp_path / "killed"))[:18] == full[:18]
    (checkpoint,) = (tmp_path / "killed" / "checkpoints").glob("*step=16.ckpt")
    train(after, data(folder), tmp_path, checkpoint, max_epochs=2)
    assert trace(after.seen) == full[16:]


def test_two_ranks_share_the_batches_of_one_and_take_turns_with_it(
    folder: Path, tmp_path: Path, processor: EveProcessor
) -> None:
    """1 process with 2 micro-batches per step equals 2 processes with 1; checkpoints go from each to the other."""
    options = {"max_epochs": 2}
    alone = Recorder(processor)
    train(
        alone,
        data(folder),
        tmp_path,
        callbacks=[SaveAlways(tmp_path / "alone")],
        accumulate_grad_batches=2,
        **options,
    )
    steps = [alone.seen[i : i + 2] for i in range(0, len(alone.seen), 2)]
    expected = [([e["ids"] for e in step], sum(e["loss"] for e in step), step[0]["weight"]) for step in steps]

    def two_ranks(name: str, ckpt: Path | None = None) -> list[tuple[list[list[str]], float, float]]:
        launch(
            2,
            tmp_path / name,
            shards=folder,
            ckpt=ckpt,
            data={"rows": 2, "num_workers": 0},
            trainer=options | {"devices": 2, "strategy": "ddp"},
            checkpoint={"every_n_train_steps": 5},
        )
        ranks = zip(lines(tmp_path / name, 0), lines(tmp_path / name, 1), strict=True)
        return [([one["ids"], two["ids"]], one["loss"] + two["loss"], one["weight"]) for one, two in ranks]

    def same(found: list, wanted: list) -> None:
        assert [ids for ids, *_ in found] == [ids for ids, *_ in wanted]
        for one, two in zip(found, wanted, strict=True):
            assert one[1:] == pytest.approx(two[1:], abs=1e-6)

    same(two_ranks("together"), expected)

    # 2 -> 1, in the middle of the second epoch
    (checkpoint,) = (tmp_path / "together" / "checkpoints").glob("*step=10.ckpt")
    after = Recorder(processor)
    train(after, data(folder), tmp_path, checkpoint, accumulate_grad_batches=2, **options)
    steps = [after.seen[i : i + 2] for i in range(0, len(after.seen), 2)]
    same([([e["ids"] for e in step], sum(e["loss"] for e in step), step[0]["weight"]) for step in steps], expected[10:])

    # 1 -> 2, in the first epoch and in the middle of a step
    (checkpoint,) = (tmp_path / "alone").glob("*-7-batch.ckpt")
    same(two_ranks("apart", checkpoint), expected[3:])
