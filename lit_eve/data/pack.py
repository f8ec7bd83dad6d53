"""Annotations become shards: in parallel, restartable, with a report of what could not be used.

    shards/shard-000000.tar, ...   shard n holds what was good of block n of the annotations, whoever wrote it and when
    shards/rejected.jsonl          the rest, each with its reason
    shards/.pack/settings.json     what the shards are made from; another job is refused
    shards/.pack/000000.json, ...  block n is done: where it lies in the annotations, and its rejected records

A block is done when its file is there, which is written after its shard. What a killed run left unfinished is made again.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from lit_eve.data.annotations import Annotations, Block, Entry, ShardedAnnotations, image_labels, read_image, shard_record
from lit_eve.data.lengths import fingerprint, shard_lengths
from lit_eve.data.parallel import in_any_order
from lit_eve.data.shards import ShardWriter
from lit_eve.data.shards.index import index_shard
from lit_eve.errors import ConfigError, SampleError
from lit_eve.processing import EveProcessor
from lit_eve.processing.images import image_size, load_image
from lit_eve.processing.processor import TemplateName
from lit_eve.processing.sample import IMAGE_PLACEHOLDER, Slot, check_answers, parse_conversation

REPORT = "rejected.jsonl"
_STATE = ".pack"
_NO_LIMITS = {"max_pixels": float("inf"), "max_aspect_ratio": float("inf")}  # those are a matter of each training
_PATIENCE = 5.0  # seconds: workers of a run that was killed need a moment to notice


@dataclass(frozen=True)
class PackJob:
    """What shards are made from.

    Args:
        annotations: see ``open_annotations``.
        output: the folder of the shards.
        images: what the names of images are relative to; not needed for shards that are packed again.
        samples_per_shard: records of a block; a shard has fewer where some were rejected. Shards that are packed again keep
            their samples.
        verify: decode every image; otherwise only its header is read.
    """

    annotations: Annotations
    output: Path
    images: Path | None = None
    samples_per_shard: int = 5000
    verify: bool = False

    def shard(self, block: int) -> Path:
        return self.output / f"shard-{block:06d}.tar"

    def note(self, block: int) -> Path:
        return self.output / _STATE / f"{block:06d}.json"

    def settings(self) -> dict[str, Any]:
        """What must be the same when a job goes on."""
        return {
            **self.annotations.identity(),
            "images": self.images and str(self.images.absolute()),
            "samples_per_shard": self.samples_per_shard,
            "verify": self.verify,
        }


@dataclass
class Packed:
    """What became of a block or, summed up, of all.

    Args:
        samples: written to shards.
        rejected: see ``rejected.jsonl``.
        renamed: samples whose id their shard had already; kept, under a key with a number behind it.
        new: samples of this run; the others were there already.
        seconds: of this run.
    """

    samples: int = 0
    rejected: int = 0
    renamed: int = 0
    new: int = 0
    seconds: float = 0.0

    def add(self, note: dict[str, Any], is_new: bool) -> None:
        self.samples += note["samples"]
        self.rejected += len(note["rejected"])
        self.renamed += note["renamed"]
        self.new += (note["samples"] + len(note["rejected"])) * is_new


def pack(
    job: PackJob,
    processor: EveProcessor | None = None,
    template: TemplateName | None = None,
    processes: int = 1,
    progress: bool = False,
) -> Packed:
    """Write the shards, or those that are missing, and their index.

    Args:
        job: what to pack.
        processor: counts the tokens of the new shards as well; without it, the first training does.
        template: what it writes conversations with.
        processes: how many shards at a time.
        progress: show progress bars.

    Raises:
        ConfigError: unusable settings, a folder that another job began, a damaged file, a disk that is full, or nothing that
            could be packed. What is done stays done.
        LitEveError: a process was killed; likewise.
    """
    _check(job)
    with _stopping(f"packing into {job.output}"), _lock(job.output):
        _remember(job)
        _clean(job)
        start = time.monotonic()
        packed = Packed()
        fault: list[ConfigError] = []
        mark = None if processor is None else fingerprint(processor, template)
        with _bar(job.annotations.size, progress) as show:
            blocks = _missing(job, packed, fault, show)
            for note in in_any_order(pack_block, blocks, job, processor, template, mark, processes=processes):
                packed.add(note, is_new=True)
                show(packed, note["end"] - note["start"])
        packed.seconds = time.monotonic() - start
        _report(job)
        if fault:
            done = f"the {packed.samples} samples before it are packed" if packed.samples else "nothing is packed"
            again = f"; remove {job.output} before the repaired file is packed into it" if packed.samples else ""
            raise ConfigError(f"{fault[0]}; {done}{again}")
        if not packed.samples:
            raise ConfigError(
                f"none of the {packed.rejected} records of {job.annotations.path} can be used{_first_reason(job)}"
            )
    return packed


def pack_block(
    block: Block, job: PackJob, processor: EveProcessor | None, template: TemplateName | None, mark: str | None
) -> dict[str, Any]:
    """Write the shard of a block, its index, and the note that it is done.

    Returns:
        the note.
    """
    rejected: list[dict[str, Any]] = []
    shard = job.shard(block.number)
    ids: set[str] = set()
    samples = 0
    with _stopping(f"writing {shard}"):
        with ShardWriter(job.output, samples_per_shard=2**62, bytes_per_shard=float("inf"), first_shard=block.number) as writer:
            for entry in job.annotations.entries(block):
                names: list[str] = []
                try:
                    record, images = _usable(entry, job, names)
                    writer.write(record, images)
                except SampleError as error:
                    about = {"image": names[0] if len(names) == 1 else names} if names else {}
                    rejected.append({**entry.place, "id": entry.record.get("id"), **about, "reason": str(error)})
                    continue
                samples += 1
                ids.add(str(record.get("id", (samples,))))
        if samples:
            index_shard(shard)
            if processor is not None:
                shard_lengths(shard, processor, template, mark)
        else:
            shard.unlink(missing_ok=True)
        note = {**asdict(block), "samples": samples, "renamed": samples - len(ids), "rejected": rejected}
        _write_whole(job.note(block.number), json.dumps(note, ensure_ascii=False))
    return note


def _usable(entry: Entry, job: PackJob, labels: list[str]) -> tuple[dict[str, Any], list[bytes]]:
    """The record of a shard and the contents of its images; ``labels`` receives what the images are called.

    Raises:
        SampleError: training could not use it.
    """
    if entry.fault is not None:
        raise SampleError(entry.fault)
    record, sources = (entry.record, entry.images) if entry.images is not None else shard_record(entry.record)
    labels += image_labels(sources)
    messages = parse_conversation(record["conversations"])
    check_answers(messages)
    places = sum(part is Slot.IMAGE for message in messages for part in message.parts)
    if places != len(labels):
        raise SampleError(
            f"the conversation has {places} places for images ({IMAGE_PLACEHOLDER}), but there are {len(labels)} images"
        )
    images = [read_image(source, job.images, label) for source, label in zip(sources, labels, strict=True)]
    for image, label in zip(images, labels, strict=True):
        (load_image if job.verify else image_size)(image, label, **_NO_LIMITS)
    return record, images


# ---- the state of a job


def _check(job: PackJob) -> None:
    if job.samples_per_shard < 1:
        raise ConfigError(f"samples_per_shard must be at least 1, got {job.samples_per_shard}")
    if isinstance(job.annotations, ShardedAnnotations):
        if job.output.resolve() in {shard.parent.resolve() for shard in job.annotations.shards}:
            raise ConfigError(f"{job.output} holds the shards that are to be packed; choose another folder for the new ones")
    elif job.images is None or not job.images.is_dir():
        raise ConfigError(f"the folder of images {job.images} does not exist")
    if not (job.output / _STATE).exists() and next(job.output.glob("*.tar"), None):
        raise ConfigError(f"{job.output} holds shards that were not packed here; choose another folder")


@contextmanager
def _lock(output: Path) -> Iterator[IO[str]]:
    """Held by this process and its workers: two jobs in one folder would mix their files."""
    (output / _STATE).mkdir(parents=True, exist_ok=True)
    with open(output / _STATE / "lock", "w") as file:
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise ConfigError(f"another run packs into {output}") from None
                time.sleep(0.1)
            except OSError:  # this file system has no locks
                break
        yield file


@contextmanager
def _stopping(what: str) -> Iterator[None]:
    """A full disk and the like in one sentence."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{what} stopped: {error}; what is done stays done, the same command goes on") from error


def _remember(job: PackJob) -> None:
    """Write the settings, or compare with those that the folder was begun with.

    A folder without a shard has nothing to lose: it is begun again with any settings, such as those of a repaired file.
    """
    path = job.output / _STATE / "settings.json"
    settings = job.settings()
    begun = _read_settings(path)
    if begun is not None and begun != settings and any(job.output.glob("shard-*.tar")):
        key = next(key for key in begun | settings if begun.get(key) != settings.get(key))
        raise ConfigError(
            f"{job.output} was begun with {key} = {begun.get(key)}, now it is {settings.get(key)}; "
            f"choose another folder, or remove this one to begin again"
        )
    if begun != settings:
        for note in (job.output / _STATE).glob("[0-9]*.json"):
            note.unlink()
        _write_whole(path, json.dumps(settings, indent=2, ensure_ascii=False))


def _read_settings(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:  # written by hand
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _clean(job: PackJob) -> None:
    """Remove what a killed run was writing."""
    for pattern in ("shard-*.tar.tmp", f"{REPORT}.tmp", f"{_STATE}/*.tmp", ".lit_eve/*.tmp"):
        for path in job.output.glob(pattern):
            path.unlink()


def _note(job: PackJob, block: int) -> dict[str, Any] | None:
    """The note of a block that is done."""
    with suppress(OSError, ValueError):
        note = json.loads(job.note(block).read_text("utf-8"))
        if not note["samples"] or job.shard(block).exists():
            return note
    return None


def _missing(job: PackJob, packed: Packed, fault: list[ConfigError], show: Callable[[Packed, int], None]) -> Iterator[Block]:
    """The blocks that are not done. Damage of the file waits in ``fault`` until what was read before it is packed."""
    notes: dict[int, dict[str, Any]] = {}

    def known(number: int) -> Block | None:
        note = _note(job, number)
        if note is None:
            return None
        notes[number] = note
        return Block(**{name: note[name] for name in Block.__dataclass_fields__})

    try:
        for block in job.annotations.blocks(job.samples_per_shard, known):
            note = notes.pop(block.number, None)
            if note is None:
                yield block
            else:
                packed.add(note, is_new=False)
                show(packed, block.end - block.start)
    except ConfigError as error:
        fault.append(error)


def _rejected(job: PackJob) -> Iterator[dict[str, Any]]:
    for path in sorted((job.output / _STATE).glob("[0-9]*.json")):
        yield from json.loads(path.read_text("utf-8"))["rejected"]


def _report(job: PackJob) -> None:
    """All rejected records, in the order of the annotations."""
    path = job.output / REPORT
    with _open(Path(f"{path}.tmp")) as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in _rejected(job))
    os.replace(file.name, path)


def _first_reason(job: PackJob) -> str:
    first = next(_rejected(job), None)
    if first is None:
        return ""
    place = ", ".join(f"{key} {first[key]}" for key in ("record", "line", "row", "shard", "key") if key in first)
    return f"; the first ({place}): {first['reason']}"


def _open(path: Path) -> IO[str]:
    """For JSON: what is no Unicode in an id becomes the escape that it was."""
    return open(path, "w", encoding="utf-8", errors="backslashreplace")


def _write_whole(path: Path, text: str) -> None:
    """The file appears with all of its text, or not at all."""
    temporary = path.with_suffix(".tmp")
    with _open(temporary) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


@contextmanager
def _bar(total: int, visible: bool) -> Iterator[Callable[[Packed, int], None]]:
    """A progress bar over the bytes of the annotations; yields what advances it by so many."""
    counts = TextColumn("{task.fields[samples]:,} samples, {task.fields[rejected]:,} rejected")
    columns = TextColumn("packing"), BarColumn(), TaskProgressColumn(), counts, TimeRemainingColumn()
    with Progress(*columns, disable=not visible) as bar:
        task = bar.add_task("packing", total=total, samples=0, rejected=0)
        yield lambda packed, size: bar.update(task, advance=size, samples=packed.samples, rejected=packed.rejected)
        bar.update(task, completed=total)  # a bracket or an empty line belongs to no block
