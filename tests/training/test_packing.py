"""Packed rows: what is where, who sees whom."""

from __future__ import annotations

import random

import torch

from nemodiff_trt.training.corruption import corrupt
from nemodiff_trt.training.packing import NO_SAMPLE, PackedBatch, PackShape, block_starts, pack_batch
from nemodiff_trt.training.samples import Sample

EOS = 11
SAMPLES = [Sample([20, 21, 22], [30, 31, 32, 33, EOS]), Sample([40, 41], [50, 51, EOS]), Sample([60], [70, EOS])]


def packed(block_length: int = 4, num_rows: int = 2) -> PackedBatch:
    return pack_batch(iter(SAMPLES * 200), random.Random(0), PackShape(num_rows, 24, 24, (block_length,)), EOS)


def test_blocks_cover_the_answer_and_are_full_but_for_the_first() -> None:
    assert block_starts(SAMPLES[0], 4, 0) == [(0, 4), (4, 8)]
    assert block_starts(SAMPLES[0], 4, 3) == [(0, 1), (1, 5)]


def test_clean_targets_are_next_tokens_of_answers_only() -> None:
    batch = packed()
    clean = slice(0, batch.num_clean)
    for row in range(2):
        for place in torch.nonzero(batch.is_answer[row, clean])[:, 0].tolist():
            assert batch.target[row, place] == batch.ids[row, place + 1]
            assert batch.sample[row, place] == batch.sample[row, place + 1]
    num_answers = sum(int((batch.ids[:, clean] == sample.answer[0]).sum()) * len(sample.answer) for sample in SAMPLES)
    assert int(batch.is_answer[:, clean].sum()) == num_answers


def test_visibility_is_the_dual_stream_mask() -> None:
    batch = packed()
    seen = batch.visibility()
    num_clean = batch.num_clean
    for row in range(2):
        for query in range(seen.shape[1]):
            for key in range(seen.shape[2]):
                same = batch.sample[row, query] == batch.sample[row, key] != NO_SAMPLE
                position, other = batch.position[row, query], batch.position[row, key]
                if query < num_clean and key < num_clean:
                    wanted = same and other <= position
                elif query < num_clean:
                    wanted = False
                elif key < num_clean:
                    wanted = same and other < batch.block_start[row, query]
                else:
                    wanted = same and batch.block_start[row, query] == batch.block_start[row, key]
                assert bool(seen[row, query, key]) == bool(wanted or query == key), (row, query, key)


def test_masks_only_fall_on_noisy_tokens_that_are_no_seeds_and_weigh_one_over_their_rate() -> None:
    batch = packed(num_rows=40)
    corruption = corrupt(batch, mask_token_id=100, min_rate=0.05, generator=torch.Generator().manual_seed(0))
    is_masked = corruption.weight > 0
    assert not is_masked[:, : batch.num_clean].any()
    assert not (is_masked & (batch.is_seed | ~batch.is_answer)).any()
    assert torch.equal(corruption.ids == 100, is_masked)
    assert float(corruption.weight[is_masked].min()) >= 1.0
    assert float(corruption.weight.max()) <= 1 / 0.05
    # E[mask / p] = 1: the weighted count of masks estimates the number of candidates (40 rows: standard error near 5 %).
    num_candidates = int(batch.is_answer[:, batch.num_clean :].sum())
    assert abs(float(corruption.weight.sum()) / num_candidates - 1) < 0.2


def test_all_tokens_of_a_block_share_one_rate() -> None:
    batch = packed(num_rows=8)
    weight = corrupt(batch, 100, 0.05, torch.Generator().manual_seed(1)).weight
    for row in range(8):
        blocks: dict[tuple[int, int], set[float]] = {}
        for place in torch.nonzero(weight[row])[:, 0].tolist():
            block = (int(batch.sample[row, place]), int(batch.block_start[row, place]))
            blocks.setdefault(block, set()).add(round(float(weight[row, place]), 6))
        assert blocks
        assert all(len(rates) == 1 for rates in blocks.values())
