"""kpayd: the payments service between a company's own systems and K-Pay."""

from importlib.metadata import version

__version__ = version("kpayd")
