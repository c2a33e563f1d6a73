"""Messages of other libraries are dropped meanwhile, and only then."""

import logging

import pytest

from skipway.utils.quiet_loggers import quiet_loggers


def test_messages_below_the_level_are_dropped_meanwhile(caplog):
    caplog.set_level(logging.WARNING, logger="somebody.else")
    logger = logging.getLogger("somebody.else")
    with quiet_loggers("somebody.else", level=logging.ERROR):
        logger.warning("a retry")
        logger.error("a failure")
    logger.warning("afterwards")
    assert caplog.messages == ["a failure", "afterwards"]


def test_levels_come_back_after_an_error():
    first, second = (logging.getLogger(f"somebody.{name}") for name in ("first", "second"))
    first.setLevel(logging.DEBUG)
    with pytest.raises(KeyError), quiet_loggers("somebody.first", "somebody.second"):
        assert (first.level, second.level) == (logging.CRITICAL, logging.CRITICAL)
        raise KeyError
    assert (first.level, second.level) == (logging.DEBUG, logging.NOTSET)
