"""Reads TorchScript files as graphs of whitelisted operations; executes nothing of the file."""

from rpg_platform.priors.formats.torchscript.archive import read, read_archive

__all__ = ["read", "read_archive"]
