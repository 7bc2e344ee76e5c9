from __future__ import annotations

import pytest

from chatterbox_vllm.t3.graph_sizes import graph_sizes


@pytest.mark.parametrize("batch", [1, 3, 16, 100, 128, 192, 512])
def test_every_step_has_a_size_that_is_not_much_larger(batch: int) -> None:
    sizes = graph_sizes(batch, 2048)
    assert len(sizes) <= 32 and batch in sizes and sizes[-1] == 2048
    for rows in range(1, batch + 1):
        assert next(size for size in sizes if size >= rows) <= max(rows * 1.25, rows + 4)
    for rows in range(batch + 1, 2049):
        assert next(size for size in sizes if size >= rows) < max(2 * rows, 2 * batch)


def test_without_graphs_of_prompts_and_with_more_requests_than_rows() -> None:
    assert graph_sizes(8, 0) == (1, 2, 4, 8)
    assert graph_sizes(40, 16)[-1] == 40
