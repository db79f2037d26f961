"""TorchScript files read as a graph of whitelisted operations; nothing of the file is executed."""

from rpg_platform.priors.formats.torchscript.archive import read

__all__ = ["read"]
