"""Fixtures for every folder of tests."""

from tests.emulators import firestore_emulator, storage_emulator

__all__ = ["firestore_emulator", "storage_emulator"]
