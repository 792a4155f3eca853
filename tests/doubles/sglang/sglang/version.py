"""The version, which says that this is the double."""

__version__ = "0.5.23+double"
