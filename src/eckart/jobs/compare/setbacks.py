"""What goes wrong around a run and says nothing of its method: no memory, no disk, a database out of reach.

Such a failure is no result. A database is waited for; a run that met another setback is free again and done anew.
"""

from __future__ import annotations

import errno
import functools
import sqlite3
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

S = TypeVar("S")

PATIENCE_SECONDS = 120.0
"""How long a database is waited for before its loss is an error."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
ATTEMPTS = 2
"""How often a worker begins a run that meets setbacks, before it leaves it to others or to the next call."""

_ERRNOS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENOMEM,
    errno.EMFILE,
    errno.ENFILE,
    errno.EIO,
    errno.EROFS,
    errno.ESTALE,
    errno.EAGAIN,
}
_WORDS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "bad_alloc",
    "iostream error",
    "no space left on device",
    "disk is full",
    "cuda error",
    "cublas_status_alloc_failed",
    "no accelerator is available",
)
_CALLS = (
    "create_new_study",
    "create_new_trial",
    "delete_study",
    "get_all_trials",
    "get_n_trials",
    "get_study_directions",
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_trial",
    "record_heartbeat",
    "set_trial_intermediate_value",
    "set_trial_state_values",
    "set_trial_user_attr",
    "_get_stale_trial_ids",
    "_get_trials",
)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those it came of."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def database_lost(error: BaseException) -> bool:
    """Whether an error says that a database is out of reach, or locked, for now."""
    from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

    for found in _chain(error):
        if isinstance(found, DBAPIError):
            if isinstance(
                found.orig, sqlite3.Error
            ):  # what SQLite says of a file is there to stay, but for locks
                return "locked" in str(found.orig)
            return isinstance(found, InterfaceError | OperationalError) or found.connection_invalidated
    return False


def is_setback(error: BaseException) -> bool:
    """Whether an error is the environment's, so that the same run may well succeed another time."""
    for found in _chain(error):
        words = str(found).lower()
        if isinstance(found, MemoryError) or type(found).__name__ == "OutOfMemoryError":
            return True
        if isinstance(found, OSError) and found.errno in _ERRNOS:
            return True
        if isinstance(found, RuntimeError | OSError) and any(word in words for word in _WORDS):
            return True
    return database_lost(error)


def patient(storage: S) -> S:
    """The storage, whose calls wait for a database that is out of reach: `PATIENCE_SECONDS` in all, ever longer.

    A call may have been carried out though its answer was lost. Setting a value twice does no harm; a trial entered
    twice is seen by `Study.claim`.
    """
    for name in _CALLS:
        if hasattr(storage, name):
            setattr(storage, name, _patiently(getattr(storage, name)))
    return storage


def _patiently(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def wait(*args: Any, **kwargs: Any) -> Any:
        pause, end = FIRST_PAUSE, time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return call(*args, **kwargs)
            except Exception as error:
                if not database_lost(error) or time.monotonic() + pause > end:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    return wait
