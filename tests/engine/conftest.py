import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _logger_as_before() -> Iterator[None]:
    """The trainer sets up the package's logger; later tests must find it as it was."""
    logger = logging.getLogger("segdet")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    for handler in set(logger.handlers) - set(before[0]):
        handler.close()
    logger.handlers[:], logger.level, logger.propagate = before
