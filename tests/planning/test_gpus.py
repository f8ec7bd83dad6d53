import pytest

from lit_eve.errors import ConfigError
from lit_eve.planning.gpus import GPUS, get_gpu


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("4090", "rtx4090"),
        ("RTX 4090", "rtx4090"),
        ("GeForce RTX 3090", "rtx3090"),
        ("a100-40gb", "a100-40g"),
        ("NVIDIA A100 80GB", "a100-80g"),
        ("A100-80G", "a100-80g"),
        ("H100 SXM", "h100"),
        ("h100-80gb", "h100"),
        ("H100 PCIe", "h100-pcie"),
        ("RTX A6000", "a6000"),
        *((key, key) for key in GPUS),
    ],
)
def test_usual_names(name, key):
    assert get_gpu(name) is GPUS[key]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("rtx4900", "did you mean rtx4090"),
        ("l40", "did you mean l40s"),
        ("409", "did you mean rtx4090"),
        ("", "known: a100-40g"),
    ],
)
def test_a_typo_is_told_with_what_may_be_meant(name, told):
    with pytest.raises(ConfigError, match=told):
        get_gpu(name)


def test_two_sizes_are_not_guessed_between():
    with pytest.raises(ConfigError, match="there is a100-40g and a100-80g; say which"):
        get_gpu("a100")
