from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from lit_eve.errors import LitEveError
from lit_eve.interpretation import BlankedPatches, compare_maps, rank_correlation


@pytest.mark.parametrize("levels", [1000, 3])  # hardly any ties, and many
def test_rank_correlation_is_that_of_scipy(levels: int) -> None:
    draw = np.random.default_rng(0)
    maps = torch.from_numpy(draw.integers(0, levels, (2, 3, 5, 4)).astype(np.float32))
    causal = torch.from_numpy(draw.integers(0, levels, (5, 4)).astype(np.float32))
    found = rank_correlation(maps, causal)
    assert found.shape == (2, 3)
    for place in np.ndindex(2, 3):
        expected = spearmanr(maps[place].flatten(), causal.flatten()).statistic
        assert found[place].item() == pytest.approx(expected, abs=1e-12)
    assert rank_correlation(causal, causal.exp() if levels == 3 else causal * 2 + 1).item() == pytest.approx(1)
    assert rank_correlation(-causal, causal).item() == pytest.approx(-1)


def test_what_has_no_order_has_no_rank_correlation() -> None:
    causal = torch.arange(6.0).view(2, 3)
    broken = causal.clone()
    broken[0, 1] = torch.nan
    for maps in (torch.full((2, 3), 0.1), broken):
        assert rank_correlation(maps, causal).isnan() and rank_correlation(causal, maps).isnan()
    with pytest.raises(LitEveError, match="maps of 2 x 3 and 3 x 2 tokens cannot be compared"):
        rank_correlation(causal, causal.T)


def make_blanked(tokens: int) -> tuple[BlankedPatches, list[torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    intact = -torch.rand(tokens, generator=draw)
    blanked = [intact[:, None, None] - torch.randn(tokens, *size, generator=draw) for size in [(2, 3), (4, 1)]]
    maps = [torch.rand(tokens, *size, generator=draw) for size in [(2, 3), (4, 1)]]
    return BlankedPatches([" blue", "circle"][:tokens], intact, blanked), maps


def test_table_of_maps_beside_what_was_blanked() -> None:
    blanked, maps = make_blanked(2)
    constant = [torch.ones_like(one) for one in maps]
    table = compare_maps(blanked, {"attention": maps, "itself": blanked.maps, "constant": constant})
    assert table.tokens == ["blue", "circle", "(whole answer)"]
    falls = np.concatenate([(blanked.intact[:, None, None] - one).flatten(1).numpy() for one in blanked.blanked], 1)
    seen = np.concatenate([one.flatten(1).numpy() for one in maps], 1)
    expected = [spearmanr(*rows).statistic for rows in zip([*seen, seen.sum(0)], [*falls, falls.sum(0)], strict=True)]
    assert table.correlations["attention"].tolist() == pytest.approx(expected)
    assert table.correlations["itself"].tolist() == pytest.approx([1, 1, 1])
    assert table.largest_drop.tolist() == pytest.approx([*falls.max(1), falls.sum(0).max()], rel=1e-5)
    probability = blanked.intact.exp()
    assert table.probability.tolist() == pytest.approx([*probability.tolist(), probability.prod().item()])
    best = [rows.argmax() for rows in (*falls, falls.sum(0))]
    assert table.hits["itself"].all()
    assert table.hits["attention"].tolist() == [a.argmax() == b for a, b in zip([*seen, seen.sum(0)], best, strict=True)]
    head, first, _, last, legend = str(table).splitlines()
    assert head.split("  ")[0] == "token" and head.endswith("attention  itself  constant") and legend.startswith("* ")
    star = ["*"] if table.hits["attention"][0] else []
    numbers = [f"{value:.2f}" for value in (probability[0], falls[0].max(), expected[0])]
    assert first.split()[:7] == ["blue", *numbers, *star, "1.00", "*", "-"][:7]
    assert last.startswith("(whole answer)") and len({len(line) for line in (head, first, last)}) == 1


def test_one_token_is_the_whole_answer_and_other_maps_are_refused() -> None:
    blanked, maps = make_blanked(1)
    assert compare_maps(blanked, {"attention": maps}).tokens == ["blue"]
    with pytest.raises(
        LitEveError, match=r"the maps 'attention' have the shapes \[\(1, 2, 3\)\], but those of blanked patches"
    ):
        compare_maps(blanked, {"attention": maps[:1]})
