"""A distributed experiment platform for policy customization with residual policy gradient."""

__version__ = "0.1.0"
