"""Ctrl-C: noted once while the robot is driven or closed, raised otherwise; handlers are put back."""

from __future__ import annotations

import os
import signal

import pytest

from worldsim.robots.signals import Signals


def test_before_anything_is_driven_it_raises():
    with Signals(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)


def test_the_first_is_noted_the_second_raises_and_closing_is_not_disturbed():
    before = signal.getsignal(signal.SIGINT)
    with Signals() as signals:
        signals.gently()
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.got == "Ctrl-C"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        signals.gently()
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.got == "Ctrl-C"
    assert signal.getsignal(signal.SIGINT) is before
