"""Fixtures for every folder of tests, and how the tests share the processors."""

import pytest

from tests.emulators import firestore_emulator, storage_emulator

__all__ = ["firestore_emulator", "storage_emulator"]


def pytest_itemcollected(item: pytest.Item) -> None:
    """Keep tests together that share a costly fixture: the whole stack, or one of a file."""
    # Not when all are collected: pytest-xdist has read the groups by then.
    parts = item.path.relative_to(item.config.rootpath).parts
    group = "end_to_end" if "end_to_end" in parts else "/".join(parts)
    item.add_marker(pytest.mark.xdist_group(group))
