"""What is in a batch, and what happens to samples that cannot be used."""

from __future__ import annotations

import gc
import io
import json
import logging
import tarfile
from itertools import islice
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_shards import TEACHER, photo, record, write_shards
from recorder import Recorder, train

from lit_eve.data import EveDataModule, ShardWriter
from lit_eve.data.dataset import Collate
from lit_eve.data.lengths import fingerprint, load_table, shard_lengths
from lit_eve.data.shards import ShardReader
from lit_eve.data.shards.paths import list_shards
from lit_eve.errors import LitEveError
from lit_eve.processing import EveProcessor

T = 512


def make(path: Path, processor: EveProcessor, teacher: bool = False, **options) -> EveDataModule:
    data = EveDataModule(**{"train": str(path), "max_tokens": T, "rows": 3, "num_workers": 0} | options)
    data.attach(processor, TEACHER if teacher else None).setup()
    return data


def samples_of(path: Path) -> dict:
    from lit_eve.data.shards.index import index_shard

    paths = list_shards(path)
    reader = ShardReader(paths)
    found = {}
    for shard, tar in enumerate(paths):
        index = index_shard(tar)
        for i in range(len(index)):
            sample = reader.read(shard, int(index.offset[i]), int(index.size[i]))
            found[sample.key] = sample
    return found


@pytest.mark.parametrize("teacher", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_is_its_samples_one_after_the_other(
    shards: SimpleNamespace, processor: EveProcessor, teacher: bool, workers: int
) -> None:
    samples = samples_of(shards.path)
    pad = processor.tokenizer.eos_token_id  # this tokenizer has none for padding
    seen = []
    for batch in make(shards.path, processor, teacher, num_workers=workers).train_dataloader():
        ids, labels = batch["input_ids"].flatten(), batch["labels"].flatten()
        positions, cu = batch["position_ids"].flatten(), batch["cu_seqlens"].tolist()
        assert batch["input_ids"].shape == batch["labels"].shape == batch["position_ids"].shape == (3, T)
        assert cu[0] == 0 and cu[-1] == 3 * T and all(a < b for a, b in zip(cu[:-1], cu[1:], strict=True))
        options = {"teacher": TEACHER if teacher else None, "max_length": T}
        encoded = [processor.encode_sample(samples[key], **options) for key in batch["sample_ids"]]
        pixels = [e["pixel_values"] for e in encoded]
        grids = [e["image_grid_hw"] for e in encoded]
        assert torch.equal(batch["pixel_values"], torch.cat(pixels)) and batch["pixel_values"].dtype == torch.uint8
        assert torch.equal(batch["image_grid_hw"], torch.cat(grids)) and batch["image_grid_hw"].dtype == torch.int64
        assert ("teacher_pixel_values" in batch) == teacher
        if teacher:
            expected = torch.cat([e["teacher_pixel_values"] for e in encoded])
            assert torch.equal(batch["teacher_pixel_values"], expected)
        rest = iter(encoded)
        for start, end in zip(cu[:-1], cu[1:], strict=True):
            assert positions[start:end].tolist() == list(range(end - start))
            if (labels[start:end] == -100).all():  # of the tail of a row
                assert end % T == 0 or end - start == max(len(e["input_ids"]) for e in encoded)
                assert set(ids[start:end].tolist()) == {pad}
                continue
            sample = next(rest)
            assert torch.equal(ids[start:end], sample["input_ids"])
            assert labels[start] == -100 and torch.equal(labels[start + 1 : end], sample["labels"][1:])
        assert next(rest, None) is None
        assert batch["num_images"] == len(batch["image_grid_hw"])
        shifted = batch["labels"].flatten()[1:]
        assert batch["num_targets"] == (shifted != -100).sum()
        seen += batch["sample_ids"]
    assert sorted(seen) == sorted(shards.keys)


def seeds_of(loader) -> dict[str, list[int]]:
    """Seeds of the images, by the key of their sample."""
    samples = samples_of(loader.table.paths[0].parent)
    found = {}
    for batch in loader:
        rest = iter(batch["image_seeds"].tolist())
        found |= {key: [next(rest) for _ in samples[key].images] for key in batch["sample_ids"]}
        assert next(rest, None) is None and batch["image_seeds"].dtype == torch.int64
    return found


def test_seeds_of_images_follow_from_seed_epoch_and_sample(shards: SimpleNamespace, processor: EveProcessor) -> None:
    """Whoever reads a sample, in whatever row, draws the same for its images; in validation always."""

    def seeds(epoch: int = 0, split: str = "train", rank: int = 0, ranks: int = 1, **options) -> dict[str, list[int]]:
        data = make(shards.path, processor, **{split: str(shards.path)} | options)
        data._place = lambda: (rank, ranks)
        loader = data.train_dataloader() if split == "train" else data.val_dataloader()
        loader.set_epoch(epoch)
        return seeds_of(loader)

    first = seeds(seed=3)
    every = [seed for images in first.values() for seed in images]
    assert first.keys() == set(shards.keys) and len(set(every)) == len(every) > 80 and min(every) >= 0
    assert any(len(images) > 1 for images in first.values()) and any(not images for images in first.values())
    assert seeds(seed=3, num_workers=2) == first and seeds(seed=3, rows=1, max_tokens=700) == first
    parts = [seeds(seed=3, rank=rank, ranks=2) for rank in range(2)]
    assert parts[0] | parts[1] == first and parts[0] and parts[1]
    for other in (seeds(seed=3, epoch=1), seeds(seed=4)):
        assert other.keys() == first.keys() and not set(every) & {seed for images in other.values() for seed in images}
    fixed = seeds(split="validation", seed=3)
    assert fixed == seeds(split="validation", seed=4, epoch=2) and fixed != first


def test_the_first_token_of_a_packed_sample_is_no_target_of_the_one_before() -> None:
    """Shifted labels would ask the last token of one sample for the first of the next."""
    encoded = {
        "input_ids": torch.tensor([5, 6, 7]),
        "labels": torch.tensor([5, 6, 7]),
        "pixel_values": torch.zeros(0, 48, dtype=torch.uint8),
        "image_grid_hw": torch.zeros(0, 2, dtype=torch.int64),
        "image_seeds": torch.zeros(0, dtype=torch.int64),
    }
    collate = Collate(max_tokens=8, pad_token_id=0, patch_dim=48, image_token_id=6)
    batch = collate([[encoded | {"key": k, "shard": "x"} for k in "ab"], []])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 5, 6, 7, 0, 0], [0] * 8]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 6, 7, -100, -100], [-100] * 8]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 0, 1], [0, 1, 2, 0, 1, 2, 0, 1]]
    assert batch["cu_seqlens"].tolist() == [0, 3, 6, 8, 11, 14, 16] and batch["cu_seqlens"].dtype == torch.int32
    assert batch["max_seqlen"] == 3 and batch["image_positions"].tolist() == [1, 4]
    assert batch["num_targets"] == 4 and batch["sample_ids"] == ["a", "b"]


@pytest.mark.parametrize("taken", [1, None])
def test_a_loader_that_is_forgotten_leaves_no_processes(
    shards: SimpleNamespace, processor: EveProcessor, taken: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They end as they are told to, and not when torch loses patience and kills them."""
    monkeypatch.setattr(BaseProcess, "terminate", lambda process: pytest.fail("it was killed"))
    loader = make(shards.path, processor, num_workers=2).train_dataloader()
    assert len(list(islice(loader, taken))) >= 1
    workers = loader._reader._iterator._workers
    del loader
    gc.collect()
    assert [worker.exitcode for worker in workers] == [0, 0]


def test_an_error_leaves_no_processes(shards: SimpleNamespace, tmp_path: Path, processor: EveProcessor) -> None:
    class Fails(Recorder):
        def training_step(self, batch, batch_idx):
            self.workers = self.trainer.train_dataloader._reader._iterator._workers
            raise RuntimeError("out of memory")

    model = Fails(processor)
    data = EveDataModule(train=str(shards.path), max_tokens=T, rows=3, num_workers=2)
    with pytest.raises(RuntimeError, match="out of memory"):
        train(model, data, tmp_path)
    assert [worker.exitcode for worker in model.workers] == [0, 0]


def test_lengths_are_those_of_the_encoded_samples(shards: SimpleNamespace, processor: EveProcessor) -> None:
    samples = samples_of(shards.path)
    for template in (None, "plain", {"name": "vicuna_v1"}):
        table = load_table([shards.path], processor, template)
        for key, length in zip(shards.keys, table.length.tolist(), strict=True):
            assert length == len(processor.encode_sample(samples[key], template)["input_ids"])


def test_lengths_are_counted_once_per_fingerprint(
    tmp_path: Path, processor: EveProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path, 6)
    (path,) = list_shards(tmp_path)
    shard_lengths(path, processor, "plain")
    monkeypatch.setattr(EveProcessor, "count_tokens_batch", lambda *_, **__: pytest.fail("counted twice"))
    shard_lengths(path, processor, "plain")
    with pytest.raises(pytest.fail.Exception):
        shard_lengths(path, processor, "vicuna_v1")
    marks = {fingerprint(processor, t) for t in ("plain", "vicuna_v1", {"name": "plain", "end": ""}, "plain")}
    assert len(marks) == 3


def test_a_batch_without_samples_has_every_key(tmp_path: Path, processor: EveProcessor) -> None:
    write_shards(tmp_path, 1)
    batches = list(make(tmp_path, processor, teacher=True, rows=4).train_dataloader())
    data = make(tmp_path, processor, teacher=True, rows=4)
    loader = data.train_dataloader()
    loader.rank, loader.world_size = 1, 2  # the only row is the other rank's
    (empty,) = loader
    assert empty.keys() == batches[0].keys()
    assert empty["num_targets"] == 0 and empty["num_images"] == 0 and empty["sample_ids"] == []
    assert empty["pixel_values"].shape == (0, 48) and empty["image_grid_hw"].shape == (0, 2)
    assert empty["teacher_pixel_values"].shape == (0, 3, 64, 64)
    for name, value in batches[0].items():
        if isinstance(value, torch.Tensor):
            assert empty[name].dtype == value.dtype, name


def test_text_only_batches_have_empty_images(tmp_path: Path, processor: EveProcessor) -> None:
    rng = np.random.default_rng(0)
    with ShardWriter(tmp_path) as writer:
        for i in range(5):
            writer.write(record(rng, i, 0))
    for batch in make(tmp_path, processor).train_dataloader():
        assert batch["pixel_values"].shape == (0, 48) and batch["image_grid_hw"].shape == (0, 2) and batch["num_targets"] > 0


# ---- samples that cannot be used


def broken_shards(folder: Path, good: int = 40) -> dict[str, str]:
    """Good samples and one of each kind of bad one; gives the bad keys and a word of the reason for each."""
    rng = np.random.default_rng(5)
    answer = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a red circle"}]
    bomb = io.BytesIO()
    from PIL import Image

    Image.new("1", (20_000, 20_000)).save(bomb, format="PNG")
    cases = {
        "truncated": ([photo(rng, 64, 64)[:-400]], answer, "decoded"),
        "bomb": ([bomb.getvalue()], answer, "pixels"),
        "header": ([photo(rng)[:12]], answer, "image"),
        "no_image": ([], answer, "places for images"),
        "two_images": ([photo(rng), photo(rng)], answer, "places for images"),
        "role": ([photo(rng)], [{"from": "alien", "value": "<image>"}, answer[1]], "unknown role"),
        "silent": ([photo(rng)], [answer[0], {"from": "gpt", "value": " "}], "empty answer"),
        "too_long": ([photo(rng)], [{"from": "human", "value": "<image> " + "word " * 600}, answer[1]], "first 512"),
    }
    with ShardWriter(folder, samples_per_shard=7) as writer:
        for i in range(good):
            writer.write(record(rng, i, 1), [photo(rng)])
            if i % 5 == 0 and cases:
                key = next(iter(cases))
                images, conversation, _ = cases[key]
                writer.write({"id": key, "conversations": conversation}, images)
                cases[f"{key}!"] = cases.pop(key)
                if all(name.endswith("!") for name in cases):
                    break
    with ShardWriter(folder, first_shard=90) as writer:
        for i in range(good, good + 5):
            writer.write(record(rng, i, 1), [photo(rng)])
    return {key.rstrip("!"): reason for key, (_, _, reason) in cases.items()}


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_skipped_and_listed_once(
    tmp_path: Path, processor: EveProcessor, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    bad = broken_shards(tmp_path / "shards")
    good = {sample for sample in samples_of(tmp_path / "shards") if sample not in bad}
    run = tmp_path / "run"
    module = Recorder(processor)
    options = {"train": str(tmp_path / "shards"), "max_tokens": T, "rows": 2, "num_workers": workers, "max_bad_fraction": 0.5}
    with caplog.at_level(logging.WARNING):
        train(module, EveDataModule(**options), run, max_epochs=2)
    for epoch in (0, 1):
        assert sorted(key for e in module.seen if e["epoch"] == epoch for key in e["ids"]) == sorted(good)
    listed = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    assert sorted(entry["key"] for entry in listed) == sorted(bad)
    for entry in listed:
        assert bad[entry["key"]] in entry["reason"] and Path(entry["shard"]).exists(), entry
        assert sum(entry["reason"] in message for message in caplog.messages) == 1
    train(Recorder(processor), EveDataModule(**options), run)  # a later run adds nothing
    assert len((run / "skipped.jsonl").read_text().splitlines()) == len(bad)


def damage_images(folder: Path, count: int) -> None:
    """Cut the pixels of so many samples, which shows when they are decoded and not before."""
    rng = np.random.default_rng(1)
    with ShardWriter(folder) as writer:
        for i in range(60):
            writer.write(record(rng, i, 1), [photo(rng, 64, 64)[: -600 if i < count else None]])


def test_too_many_bad_samples_end_the_run(tmp_path: Path, processor: EveProcessor) -> None:
    damage_images(tmp_path / "shards", 6)
    data = {"train": str(tmp_path / "shards"), "max_tokens": T, "rows": 2, "num_workers": 0}
    with pytest.raises(LitEveError, match=r"10\.00% of the samples .* more than data\.max_bad_fraction = 0\.09") as caught:
        train(Recorder(processor), EveDataModule(**data, max_bad_fraction=0.09), tmp_path)
    assert "skipped.jsonl" in str(caught.value) and "cannot be decoded" in str(caught.value)
    train(Recorder(processor), EveDataModule(**data, max_bad_fraction=0.11), tmp_path)


def test_what_is_known_from_the_index_ends_the_run_before_it_starts(tmp_path: Path, processor: EveProcessor) -> None:
    rng = np.random.default_rng(1)
    with ShardWriter(tmp_path / "shards") as writer:
        for i in range(20):
            conversation = record(rng, i, 1)["conversations"] if i else [{"from": "human", "value": "<image>"}]
            writer.write({"id": i, "conversations": conversation}, [photo(rng)])
    data = EveDataModule(train=str(tmp_path / "shards"), max_tokens=T, num_workers=0)
    module = Recorder(processor)
    with pytest.raises(LitEveError, match="5.00% of the samples cannot be used"):
        train(module, data, tmp_path)
    assert not module.seen and "has no answer" in (tmp_path / "skipped.jsonl").read_text()


def test_early_failure_is_judged_on_enough_samples() -> None:
    from lit_eve.data.lengths import Skipped
    from lit_eve.data.skips import SkipLog

    skips = SkipLog(None, max_bad_fraction=0.01, min_samples=100)
    skips.add([Skipped("a", "b", "c")], usable=50)
    with pytest.raises(LitEveError, match="1.98%"):
        skips.add([Skipped("a", "d", "c")], usable=49)
    skips.add([], usable=500)


def test_a_share_that_the_epoch_cannot_make_good_ends_the_run_at_once() -> None:
    from lit_eve.data.lengths import Skipped
    from lit_eve.data.skips import SkipLog

    bad = [Skipped("shard-7.tar", "b", "it is broken")]
    skips = SkipLog(None, max_bad_fraction=0.02)
    skips.expect(100, 100)
    skips.add([], usable=97)
    for _ in range(2):  # the last but one of an epoch: 2 of 100 in the end
        skips.add(bad, usable=0)
    with pytest.raises(LitEveError, match=r"^3.00% of .* \(3 of 100 .*; the last one, of shard-7.tar: it is broken$"):
        skips.add(bad, usable=0)
    resumed = SkipLog(None, max_bad_fraction=0.02)  # what was read before a restart was good
    resumed.expect(100, 100)
    resumed.add(bad, usable=3)
    with pytest.raises(LitEveError, match="^at least 3.00% of"):
        resumed.add(bad * 2, usable=0)


@pytest.mark.parametrize(("epoch", "run", "count"), [(10_000, 10_000, 100), (30, 30, 30), (10_000, 5, 5)])
def test_nothing_but_unusable_samples_end_the_run_whatever_is_allowed(epoch: int, run: int, count: int) -> None:
    from lit_eve.data.lengths import Skipped
    from lit_eve.data.skips import SkipLog

    skips = SkipLog(None, max_bad_fraction=1.0)
    skips.expect(epoch, run)
    skips.add([Skipped("a", "b", "c")] * (count - 1), usable=0)
    with pytest.raises(LitEveError, match=f"none of the {count} samples that were read can be used"):
        skips.add([Skipped("a", "b", "c")], usable=0)
    skips = SkipLog(None, max_bad_fraction=1.0)
    skips.expect(epoch, run)
    skips.add([Skipped("a", "b", "c")] * (count - 1), usable=1)


@pytest.mark.parametrize(("limit", "steps", "words"), [(0.01, 9, "at least [0-9.]+% of the"), (1.0, 1, "none of the [0-9]+")])
def test_a_run_in_which_nothing_can_be_learnt_ends_before_its_first_step(
    tmp_path: Path, processor: EveProcessor, limit: float, steps: int, words: str
) -> None:
    damage_images(tmp_path / "shards", 60)
    data = EveDataModule(train=str(tmp_path / "shards"), max_tokens=T, num_workers=0, max_bad_fraction=limit)
    module = Recorder(processor)
    with pytest.raises(LitEveError, match=rf"{words} samples .*skipped.jsonl; the last one, of .*shard-000000.tar: "):
        train(module, data, tmp_path, max_steps=steps)
    assert not module.seen


def test_samples_that_are_cut_before_their_answers_are_not_learnt_from(tmp_path: Path, processor: EveProcessor) -> None:
    write_shards(tmp_path / "shards", 20)
    data = EveDataModule(train=str(tmp_path / "shards"), max_tokens=8, num_workers=0)
    with pytest.raises(LitEveError, match="can be used; .* first 8 of its [0-9]+ tokens$|does not fit in 8 tokens$"):
        train(Recorder(processor), data, tmp_path, max_steps=1)


def test_a_shard_that_vanishes_is_reported(tmp_path: Path, processor: EveProcessor) -> None:
    write_shards(tmp_path / "shards", 30, per_shard=10)
    data = EveDataModule(train=str(tmp_path / "shards"), max_tokens=T, num_workers=0)
    module = Recorder(processor)
    module.on_train_start = lambda: list_shards(tmp_path / "shards")[1].unlink()
    with pytest.raises(LitEveError, match="more than data.max_bad_fraction"):
        train(module, data, tmp_path)
    assert "shard-000001.tar" in (tmp_path / "skipped.jsonl").read_text()


def test_a_batch_of_nothing_but_bad_samples_is_a_batch_without_targets(tmp_path: Path, processor: EveProcessor) -> None:
    damage_images(tmp_path / "shards", 50)
    data = EveDataModule(train=str(tmp_path / "shards"), max_tokens=T, num_workers=0, max_bad_fraction=1.0)
    module = Recorder(processor)
    train(module, data, tmp_path)
    empty = [entry for entry in module.seen if not entry["ids"]]
    assert len(empty) > 5 and all(entry["targets"] == 0 and entry["loss"] == 0 for entry in empty)


def test_a_sample_longer_than_counted_does_not_break_its_row(tmp_path: Path, processor: EveProcessor) -> None:
    write_shards(tmp_path, 10)
    data = make(tmp_path, processor, rows=1, max_bad_fraction=1.0)
    loader = data.train_dataloader()
    loader.table.length[:] = np.where(np.arange(10) == 3, 5, loader.table.length)
    assert "s00003" not in [key for batch in loader for key in batch["sample_ids"]]
    assert loader.skips.bad == 1


def test_other_errors_are_not_swallowed(shards: SimpleNamespace, processor: EveProcessor, monkeypatch) -> None:
    monkeypatch.setattr(EveProcessor, "encode_sample", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(iter(make(shards.path, processor).train_dataloader()))


def test_tar_of_foreign_files_is_an_error_and_not_an_empty_epoch(tmp_path: Path, processor: EveProcessor) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("a.csv", "b.csv"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(LitEveError, match="data.train: none of its 2 samples can be used: a: there is no conversation"):
        make(tmp_path, processor)


def test_words_that_the_tokenizer_does_not_know_are_named(tmp_path: Path) -> None:
    """Once for each split, also where lengths are counted already; a vocabulary with bytes knows everything."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "cat": 2, "</s>": 3, "\n": 4}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    few = EveProcessor(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>"), template="plain")
    with ShardWriter(tmp_path) as writer:
        for index, caption in enumerate(["a cat", "a zebra", "a zebra cat", "a 日本"]):
            talk = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": caption}]
            writer.write({"id": str(index), "conversations": talk})
    for _ in range(2):
        data = EveDataModule(train=str(tmp_path), template="plain", num_workers=0).attach(few)
        with pytest.warns(UserWarning, match=r"data.train: 33.33% of .* \(3\) .*not know: 'zebra' \(2\), '日本' \(1\)$"):
            data.setup("fit")
    from made_shards import make_processor

    assert load_table([tmp_path], make_processor(), "plain").unknown.unknown == 0
