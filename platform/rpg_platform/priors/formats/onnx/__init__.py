"""Reads ONNX models as graphs of whitelisted operations; executes nothing of the file."""

from rpg_platform.priors.formats.onnx.model import read

__all__ = ["read"]
