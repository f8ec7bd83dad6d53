from __future__ import annotations

import gc
import os
import signal

import pytest

TRAIN_ONCE = {"test_fsdp.py", "test_decoder_kinds.py", "test_adapters.py", "test_resume.py", "test_validation.py"}


def pytest_configure(config: pytest.Config) -> None:
    """Ctrl-C arrives. GPUs are hidden from a run that asks for no test of them: the others are about CPUs, and some fork."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so a shell starts what runs in its background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_finish() -> None:
    """What was imported and collected stays: the garbage collector need not look through it with every test."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Trainings that whole files share come first, where no other worker takes a part of the file; no GPU, no test of it."""
    items.sort(key=lambda item: item.path.name not in TRAIN_ONCE)
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if needing:
        import torch

        if not torch.cuda.is_available():
            for item in needing:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
