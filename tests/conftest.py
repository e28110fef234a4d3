"""Fixtures for every folder of tests, and how the tests share the processors."""

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from tests.emulators import firestore_emulator, storage_emulator

__all__ = ["firestore_emulator", "storage_emulator"]

_WHOLE_STACK = "tests/end_to_end"


class _Sharing(LoadFileScheduling):  # type: ignore[misc]  # it has no types
    """Keeps tests together that share a costly fixture: one of a file, or the whole stack."""

    def _split_scope(self, nodeid: str) -> str:
        file = str(super()._split_scope(nodeid))
        return _WHOLE_STACK if file.startswith(_WHOLE_STACK) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling:
    """Say which tests go to the same process."""
    return _Sharing(config, log)
