"""`quiet`: other libraries are silent inside and as before afterwards, also after an error."""

from __future__ import annotations

import gc
import logging
import warnings

import pytest
from transformers.utils import logging as transformers_logging

from eckart.quiet import quiet, short_collections


@pytest.mark.parametrize("bars", [True, False])
def test_inside_and_afterwards(bars: bool, caplog: pytest.LogCaptureFixture) -> None:
    there = transformers_logging.is_progress_bar_enabled()
    (transformers_logging.enable_progress_bar if bars else transformers_logging.disable_progress_bar)()
    disabled, logger = logging.root.manager.disable, logging.getLogger("some.library")
    try:
        with pytest.raises(RuntimeError, match="stop"), warnings.catch_warnings():
            warnings.simplefilter("error")
            with quiet():
                warnings.warn("not shown", stacklevel=1)
                logger.warning("not shown")
                logger.error("shown")
                assert not transformers_logging.is_progress_bar_enabled()
                raise RuntimeError("stop")
        assert transformers_logging.is_progress_bar_enabled() is bars
        assert logging.root.manager.disable == disabled
        assert [record.message for record in caplog.records] == ["shown"]
    finally:
        (transformers_logging.enable_progress_bar if there else transformers_logging.disable_progress_bar)()


def test_collections_leave_out_what_is_loaded_and_only_once() -> None:
    gc.unfreeze()
    with pytest.raises(KeyError), short_collections():
        assert (frozen := gc.get_freeze_count()) > 0
        later: list[list[object]] = [[] for _ in range(1000)]
        with short_collections():
            assert 0 < gc.get_freeze_count() <= frozen, (
                "what came later is left in; what was left out may have gone"
            )
        assert 0 < gc.get_freeze_count() <= frozen
        del later
        raise KeyError
    assert gc.get_freeze_count() == 0
