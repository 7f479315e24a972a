"""Errors that are caught so that the program goes on: a defect of ours leaves its traceback in the log all the same."""

from __future__ import annotations

import logging

from loradesk_engine.errors import LoradeskError
from loradesk_engine.log.traces import describe


def is_expected(error: BaseException) -> bool:
    """Whether an error is no defect of ours: one that is raised on purpose, a disk's, or want of memory."""
    shortage = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's is a RuntimeError
    return shortage or isinstance(error, LoradeskError | OSError)


def log_defect(logger: logging.Logger, what: str, error: BaseException) -> None:
    """Log an error that was caught: a defect as an ERROR with its traceback, an expected one for debugging only.

    Args:
        what: what failed, in a few words and without any text of a conversation.
    """
    if not is_expected(error):
        logger.error("%s failed: %s", what, describe(error), exc_info=error)
    else:
        logger.debug("%s failed: %s", what, describe(error), exc_info=error)
