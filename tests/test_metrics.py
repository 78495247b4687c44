from __future__ import annotations

from tests.each import each

from gaussiank.metrics import Metrics


@each(("dense_bytes", "sent_bytes", "compression"), [(1000, 8, 125.0), (6, 12, 0.5), (7, 7, 1.0)])
def test_compression_is_dense_bytes_over_sent_bytes(dense_bytes: int, sent_bytes: int, compression: float) -> None:
    assert Metrics(dense_bytes=dense_bytes, sent_bytes=sent_bytes).compression == compression


def test_compression_of_one_worker_is_one() -> None:
    assert Metrics(numel=100, k=1, kept=1).compression == 1.0


def test_begins_at_zero_and_dense() -> None:
    fresh = Metrics(step=3)
    assert (fresh.step, fresh.density) == (3, 1.0)
    assert (fresh.numel, fresh.k, fresh.kept, fresh.sent_bytes, fresh.dense_bytes) == (0, 0, 0, 0, 0)
    assert (fresh.select_s, fresh.exchange_s, fresh.finish_s, fresh.launched_at) == (0.0, 0.0, 0.0, 0.0)
