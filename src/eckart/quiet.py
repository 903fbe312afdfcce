"""Other libraries kept off the screen, and out of the garbage collector's way."""

from __future__ import annotations

import gc
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what other libraries say below the level of an error, and transformers' progress bars, off the screen.

    Afterwards all is as before. Transformers is not imported for it: where it is not there yet, it has nothing to say.
    """
    transformers = sys.modules.get("transformers.utils.logging")
    bars = transformers is not None and transformers.is_progress_bar_enabled()
    disabled = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(max(disabled, logging.WARNING))
        if transformers is not None and bars:
            transformers.disable_progress_bar()
        try:
            yield
        finally:
            logging.disable(disabled)
            if transformers is not None and bars:
                transformers.enable_progress_bar()


@contextmanager
def short_collections() -> Iterator[None]:
    """Leave what is already loaded out of garbage collections, which each training forces: a tenth of the time of each.

    Where something is left out already, by whoever called, nothing is done.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
