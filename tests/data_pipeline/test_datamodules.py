"""Datamodules as a YAML uses them: mistakes are named by their key, help is complete, validation is deterministic."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from jsonargparse import ArgumentParser
from made_shards import photo, record, write_shards
from recorder import Recorder, train

from lit_eve.data import EveDataModule, FinetuneDataModule, PrealignDataModule, PretrainDataModule, ShardWriter, Source
from lit_eve.errors import ConfigError
from lit_eve.processing import EveProcessor

STAGES = [PrealignDataModule, PretrainDataModule, FinetuneDataModule]


def ready(processor: EveProcessor, **options) -> EveDataModule:
    data = EveDataModule(**{"max_tokens": 512, "rows": 2, "num_workers": 0} | options).attach(processor)
    data.setup()
    return data


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rows": 0}, "data.rows must be at least 1"),
        ({"max_tokens": 0}, "data.max_tokens must be at least 1"),
        ({"validation_rows": 0}, "data.validation_rows must be at least 1"),
        ({"limit_samples": 0}, "data.limit_samples must be at least 1"),
        ({"shuffle_window": -1}, "data.shuffle_window must be at least 1"),
        ({"num_workers": -1}, "data.num_workers must be at least 0"),
        ({"max_bad_fraction": 2.0}, "data.max_bad_fraction must lie between 0 and 1"),
        ({"train": [Source("x", 0)]}, "data.train: the weight of x must be positive"),
        ({"train": [Source("x", float("nan"))]}, "data.train: the weight of x must be positive"),
    ],
)
def test_senseless_values_are_named_at_once(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EveDataModule(**options)


@pytest.mark.parametrize("key", ["train", "validation", "test"])
def test_missing_shards_are_named_by_key(tmp_path: Path, shards: SimpleNamespace, processor: EveProcessor, key: str) -> None:
    paths = {name: str(shards.path) for name in ("train", "validation", "test")}
    with pytest.raises(ConfigError, match=f"data.{key}: .*nowhere does not exist"):
        ready(processor, **paths | {key: str(tmp_path / "nowhere")})
    with pytest.raises(ConfigError, match=f"data.{key}: .* holds no shards"):
        ready(processor, **paths | {key: str(tmp_path)})


def test_nothing_to_train_on(tmp_path: Path, shards: SimpleNamespace, processor: EveProcessor) -> None:
    with pytest.raises(ConfigError, match="data.train is not set: there is nothing to fit"):
        train(Recorder(processor), EveDataModule(validation=str(shards.path)), tmp_path)


def test_a_processor_is_needed(shards: SimpleNamespace) -> None:
    with pytest.raises(ConfigError, match="the data needs a processor"):
        EveDataModule(str(shards.path)).setup()


@pytest.mark.parametrize("kind", STAGES)
def test_every_argument_is_explained_and_typos_are_refused(kind: type, capsys: pytest.CaptureFixture) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(EveDataModule, "data")
    name = f"lit_eve.data.{kind.__name__}"
    config = parser.parse_args([f"--data={name}", '--data.train=[{"path": "a", "weight": 2}, {"path": "b"}]', "--data.rows=3"])
    data = parser.instantiate(config).data
    assert isinstance(data, kind) and data.rows == 3
    assert data.sources["train"] == [Source("a", 2.0), Source("b", 1.0)]
    assert data.template == (None if kind is FinetuneDataModule else "plain")
    for typo in ("--data.rwos=3", '--data.train=[{"pth": "a"}]', "--data.rows=many"):
        with pytest.raises(Exception, match="rwos|pth|rows"):
            parser.parse_args([f"--data={name}", typo])
    with pytest.raises(SystemExit):
        parser.parse_args([f"--data.help={name}"])
    text = capsys.readouterr().out
    for argument in ("train", "template", "max_tokens", "rows", "shuffle_window", "max_bad_fraction", "seed"):
        explained = text.rsplit(f"--data.{argument} {argument.upper()}", 1)[1].split("(type:")[0]
        assert len(explained.split()) > 4 and "--data" not in explained.removeprefix(", --data.train+"), argument


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (None, False),
        ("plain", False),
        ({"name": "vicuna_v1"}, False),
        ("eve_v1", True),
        ({"name": "vicuna_v1", "system": ""}, True),
    ],
)
def test_another_dialogue_than_the_models_is_told(shards: SimpleNamespace, processor: EveProcessor, template, told) -> None:
    data = EveDataModule(train=str(shards.path), template=template, num_workers=0).attach(processor)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data.setup("fit")
    message = f"data.template = {template!r} is trained, but chat, evaluations and benchmarks ask the model as its own template"
    assert any(message in str(one.message) for one in caught) == told


@pytest.mark.parametrize("template", [None, {"name": "plain", "end": ""}])
def test_a_template_that_cannot_be_used_is_named_by_its_key(processor: EveProcessor, template) -> None:
    own = EveProcessor(processor.tokenizer, processor.geometry, template={"name": "plain", "end": ""})
    with pytest.raises(ConfigError, match=f"^{'data' if template else 'model'}.template: .* ends an answer with nothing"):
        EveDataModule(template=template).attach(own)


def test_validation_is_the_same_every_time_and_packed(shards: SimpleNamespace, processor: EveProcessor) -> None:
    runs = []
    for workers in (0, 2):
        loader = ready(processor, validation=str(shards.path), num_workers=workers).val_dataloader()
        runs.append([batch["sample_ids"] for batch in loader])
        runs.append([batch["sample_ids"] for batch in loader])
    assert all(run == runs[0] for run in runs)
    ids = [key for batch in runs[0] for key in batch]
    assert sorted(ids) == sorted(shards.keys) and len(loader) < 100 / 3
    assert ids[0] == "s00000"


def test_validation_may_be_limited(shards: SimpleNamespace, processor: EveProcessor) -> None:
    data = ready(processor, validation=str(shards.path), limit_samples=10, validation_rows=1)
    batches = list(data.val_dataloader())
    ids = sorted(key for batch in batches for key in batch["sample_ids"])
    assert len(ids) == 10 and ids[0] == "s00000" and ids[-1] == "s00099"
    assert batches[0]["input_ids"].shape == (1, 512)
    assert len(list(data.test_dataloader())) == len(batches)


def test_a_limited_validation_takes_samples_that_can_be_used(tmp_path: Path, processor: EveProcessor) -> None:
    rng = np.random.default_rng(1)
    with ShardWriter(tmp_path) as writer:
        for number in range(9):
            conversation = record(rng, number, 1)["conversations"][: 2 if number % 2 else 1]  # without an answer
            writer.write({"id": number, "conversations": conversation}, [photo(rng)])
    data = ready(processor, validation=str(tmp_path), limit_samples=3, max_bad_fraction=1.0)  # 0, 4 and 8 of them all
    assert [key for batch in data.val_dataloader() for key in batch["sample_ids"]] == ["1", "5", "7"]
    assert [sample.key for sample in data.samples("validation", 3)] == ["1", "5", "7"]


def test_weights_that_take_no_sample(shards: SimpleNamespace, processor: EveProcessor) -> None:
    data = ready(processor, train=[Source(str(shards.path), 1e-4)])
    with pytest.raises(ConfigError, match="data.train: epoch 0 has no samples: the weights of its sources are too small"):
        data.train_dataloader()


def test_validation_in_a_run_sees_every_sample(tmp_path: Path, shards: SimpleNamespace, processor: EveProcessor) -> None:
    module = Recorder(processor)
    data = EveDataModule(str(shards.path), str(shards.path), max_tokens=512, rows=4, num_workers=0)
    train(module, data, tmp_path, limit_val_batches=1.0, max_epochs=2)
    assert sorted(module.validated) == sorted(shards.keys * 2)


def test_mixtures(tmp_path: Path, processor: EveProcessor) -> None:
    write_shards(tmp_path / "a", 20)
    write_shards(tmp_path / "b", 40, first=100)
    sources = [Source(str(tmp_path / "a"), 2.0), Source(str(tmp_path / "b"), 0.5)]
    loader = ready(processor, train=sources).train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        epochs.append([key for batch in loader for key in batch["sample_ids"]])
    for ids in epochs:
        assert sorted(key for key in ids if key < "s00100") == sorted([f"s{i:05d}" for i in range(20)] * 2)
        assert sum(key >= "s00100" for key in ids) == 20
    assert sorted(key for ids in epochs for key in ids if key >= "s00100") == [f"s{i:05d}" for i in range(100, 140)]


def test_padding_is_known_before_training(shards: SimpleNamespace, processor: EveProcessor) -> None:
    data = ready(processor, train=str(shards.path))
    loader = data.train_dataloader()
    predicted = loader.plan.padding(loader.table.length, 512)
    tokens = sum(used(batch) for batch in loader)
    assert 1 - tokens / (len(loader.plan) * 512) == pytest.approx(predicted)
    assert predicted < 0.05


def used(batch: dict) -> int:
    """Tokens of samples, which all have a target, unlike the tail of a row."""
    labels, cu = batch["labels"].flatten(), batch["cu_seqlens"].tolist()
    return sum(end - start for start, end in zip(cu[:-1], cu[1:], strict=True) if (labels[start:end] != -100).any())


def test_long_samples_are_reported(shards: SimpleNamespace, processor: EveProcessor) -> None:
    with pytest.warns(UserWarning, match=r"data.train: \d+ of 100 samples are longer than data.max_tokens = 200 and are cut"):
        ready(processor, train=str(shards.path), max_tokens=200, max_bad_fraction=1.0)


def test_samples_longer_than_the_decoder_was_made_for_are_told_at_the_start(
    shards: SimpleNamespace, processor: EveProcessor
) -> None:
    data = EveDataModule(train=str(shards.path), max_tokens=512, max_bad_fraction=1.0)
    message = (
        r"data.train: \d+ of 100 samples have more tokens \(up to \d+\) than the 200 that .*; data.max_tokens = 200 cuts them"
    )
    with pytest.warns(UserWarning, match=message):
        data.attach(processor, longest_sample=200).setup()
    with pytest.raises(ConfigError, match=message):
        data.attach(processor, longest_sample=200, reads_longer_samples=False).setup()
    data.max_tokens = 200
    with pytest.warns(UserWarning, match="are cut"):
        data.setup()


def test_data_that_makes_itself_is_made_once_and_whole(tmp_path: Path, processor: EveProcessor) -> None:
    asked = []

    class Made(FinetuneDataModule):
        def make_samples(self, folder):
            asked.append(folder)
            rng = np.random.default_rng(len(folder))
            for number in range(6):
                yield record(rng, number, 1), [photo(rng)]
                if len(asked) == 1:
                    raise KeyboardInterrupt

    folders = {split: str(tmp_path / split) for split in ("train", "validation")}
    data = Made(**folders, max_tokens=512, num_workers=0).attach(processor)
    with pytest.raises(KeyboardInterrupt):
        data.prepare_data()
    assert not (tmp_path / "train").exists()
    for _ in range(2):
        data.prepare_data()
    assert asked == [folders["train"], folders["train"], folders["validation"]]
    data.setup()
    assert [sample.key for sample in data.samples("validation")] == [f"s{number:05d}" for number in range(6)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train", "validation"]
