"""The plan of an epoch is a pure function: properties over many random mixtures, seeds and length distributions."""

from __future__ import annotations

import time

import numpy as np
import pytest

from lit_eve.data.packing import RULES, pack, recipes
from lit_eve.data.plan import batch_rows, draw, num_batches, permutation, plan_epoch
from lit_eve.errors import ConfigError

T = 2048


def eve_lengths(count: int, seed: int = 0) -> np.ndarray:
    """EVE's captions: photos of common shapes at S = 672, and a caption."""
    rng = np.random.default_rng(seed)
    images = rng.choice([601, 451, 401, 551, 501, 351], count, p=[0.15, 0.35, 0.2, 0.1, 0.1, 0.1])
    return np.clip(images + rng.lognormal(4.3, 0.6, count).astype(int), 1, T).astype(np.int32)


def chat_lengths(count: int, seed: int = 0) -> np.ndarray:
    """LLaVA's instruction mix: some text only, some with several turns."""
    rng = np.random.default_rng(seed)
    images = rng.choice([0, 601, 451, 401], count, p=[0.06, 0.3, 0.5, 0.14])
    return np.clip(images + rng.lognormal(5, 0.8, count).astype(int), 1, T).astype(np.int32)


def text_lengths(count: int, seed: int = 0) -> np.ndarray:
    return np.clip(np.random.default_rng(seed).lognormal(5.5, 1, count), 1, T).astype(np.int32)


@pytest.mark.parametrize("make", [eve_lengths, chat_lengths, text_lengths])
@pytest.mark.parametrize("count", [1, 2, 63, 1000, 20_000])
@pytest.mark.parametrize("window", [None, 5000])
def test_every_sample_exactly_once_and_rows_fit(make, count: int, window: int | None) -> None:
    lengths = make(count)
    plan = plan_epoch(lengths, T, seed=3, epoch=5, shuffle_window=window)
    assert np.array_equal(np.sort(plan.samples), np.arange(count))
    used = np.add.reduceat(lengths[plan.samples], plan.starts[:-1])
    assert used.max() <= T and (np.diff(plan.starts) > 0).all()


@pytest.mark.parametrize("make", [eve_lengths, chat_lengths, text_lengths])
@pytest.mark.parametrize("count, window", [(4000, None), (100_000, None), (100_000, 20_000)])
def test_padding_is_below_5_percent(make, count: int, window: int | None) -> None:
    lengths = make(count)
    assert plan_epoch(lengths, T, shuffle_window=window).padding(lengths, T) < 0.05


def test_best_fit_alone_is_not_enough_for_captioned_photos() -> None:
    lengths = eve_lengths(100_000)
    best_fit, two_together, chosen = (pack(lengths, T, rule).max() + 1 for rule in (1, 2, None))
    assert best_fit * T > 1.05 * lengths.sum()
    assert chosen == two_together and chosen * T < 1.02 * lengths.sum()


def test_where_best_fit_is_the_better_one_it_is_taken() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.choice([33, 41, 49, 57, 65, 73, 37], 10_000) + rng.integers(30, 75, 10_000)
    best_fit, two_together, chosen = (pack(lengths, 256, rule).max() + 1 for rule in (1, 2, None))
    assert chosen == best_fit < two_together


@pytest.mark.parametrize("rule", RULES)
def test_recipes_use_every_sample_and_fit(rule) -> None:
    rng = np.random.default_rng(1)
    for size in (5, 17, 64, 300):
        for _ in range(20):
            counts = rng.poisson(rng.choice([0.1, 1, 10]), size + 1)
            counts[0] = 0
            used = np.zeros(size + 1, int)
            for times, row in recipes(counts.tolist(), size, rule):
                assert times > 0 and 0 < sum(length * uses for length, uses in row.items()) <= size
                for length, uses in row.items():
                    used[length] += times * uses
            assert np.array_equal(used, counts)


def test_order_is_a_pure_function_of_seed_and_epoch() -> None:
    lengths = eve_lengths(2000)
    one, two = (plan_epoch(lengths, T, seed=7, epoch=3) for _ in range(2))
    assert np.array_equal(one.samples, two.samples) and np.array_equal(one.starts, two.starts)
    for other in (plan_epoch(lengths, T, seed=8, epoch=3), plan_epoch(lengths, T, seed=7, epoch=4)):
        assert not np.array_equal(one.samples, other.samples)


def test_order_is_the_same_on_every_machine() -> None:
    assert permutation(10, 1, 2).tolist() == [5, 6, 9, 3, 2, 1, 0, 8, 4, 7]
    assert np.array_equal(np.sort(permutation(100_003, 0)), np.arange(100_003))


@pytest.mark.parametrize("window", [None, 1000])
def test_epochs_have_the_same_number_of_rows(window: int | None) -> None:
    lengths = np.concatenate([eve_lengths(3000), chat_lengths(2000)])
    rows = {
        len(plan_epoch(lengths, T, sizes=[3000, 2000], weights=[1, 2], epoch=epoch, shuffle_window=window))
        for epoch in range(6)
    }
    assert len(rows) == 1


def test_shuffling_mixes_sources_and_pairs() -> None:
    lengths = np.full(4000, 512, np.int32)
    plan = plan_epoch(lengths, T, sizes=[2000, 2000])
    first_half = (plan.samples < 2000)[:2000].mean()
    assert 0.4 < first_half < 0.6
    neighbours = np.abs(np.diff(plan.samples.astype(int)))
    assert (neighbours == 1).mean() < 0.01


def test_a_window_holds_its_share_of_every_source_and_few_shards() -> None:
    lengths = np.full(10_000, 512, np.int32)
    plan = plan_epoch(lengths, T, sizes=[8000, 2000], shuffle_window=1000)
    for start in range(0, 10_000, 1000):
        window = plan.samples[start : start + 1000]
        large, small = window[window < 8000], window[window >= 8000]
        assert len(small) == 200 and np.ptp(large) < 800 and np.ptp(small) < 200


@pytest.mark.parametrize("weight", [0.25, 0.5, 1.0, 1.5, 2.0, 3.0])
def test_weight_is_how_often_a_sample_is_seen_per_epoch(weight: float) -> None:
    epochs = 4
    seen = np.zeros(200, int)
    for epoch in range(epochs):
        once = np.bincount(draw(200, weight, seed=1, epoch=epoch), minlength=200)
        assert set(once.tolist()) <= {int(weight), -int(-weight // 1)}
        seen += once
    assert (seen == weight * epochs).all()


def test_half_weight_gives_another_half_in_the_next_epoch() -> None:
    one, two = (draw(100, 0.5, seed=0, epoch=epoch) for epoch in (0, 1))
    assert len(one) == len(two) == 50 and not set(one) & set(two)


def test_the_share_of_a_source_is_its_weight_times_its_size() -> None:
    lengths = eve_lengths(1000)
    plan = plan_epoch(lengths, T, sizes=[900, 100], weights=[0.5, 3.0])
    assert (plan.samples < 900).sum() == 450 and (plan.samples >= 900).sum() == 300


def test_unusable_samples_are_left_out_and_long_ones_take_a_row() -> None:
    plan = plan_epoch(np.array([0, 5000, 10, 0, 20]), 100)
    assert sorted(plan.samples.tolist()) == [1, 2, 4] and len(plan) == 2


def test_storage_order_without_shuffling() -> None:
    plan = plan_epoch(np.full(100, 30), 100, shuffle=False)
    assert plan.samples.tolist() == list(range(100)) and len(plan) == 34


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="one size and one weight per source"):
        plan_epoch(np.ones(10, int), 16, sizes=[4, 5])


@pytest.mark.parametrize("num_rows", [1, 7, 8, 9, 64])
def test_ranks_share_global_batches(num_rows: int) -> None:
    """Whatever rows x ranks is made of, global batches are the same; ranks are disjoint and have equally many batches."""
    for rows, world in [(8, 1), (4, 2), (2, 4), (1, 8)]:
        assert num_batches(num_rows, rows, world) == -(-num_rows // 8)
        for batch in range(num_batches(num_rows, rows, world)):
            together = [row for rank in range(world) for row in batch_rows(batch, rows, rank, world)]
            assert together == list(range(batch * 8, batch * 8 + 8))


def test_rows_past_the_end_are_empty() -> None:
    plan = plan_epoch(np.full(10, 60), 100)
    assert len(plan) == 10 and len(plan.row(9)) == 1 and len(plan.row(10)) == 0


def test_a_million_samples_are_planned_in_seconds() -> None:
    start = time.perf_counter()
    plan_epoch(eve_lengths(1_000_000), T)
    assert time.perf_counter() - start < 30  # 1 to 2 seconds on a quiet core
