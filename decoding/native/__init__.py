"""The step of a decoder on a CPU, in C++.

The machine's C++ compiler builds it at first use, in some seconds, for this very processor; the result is kept in the
user's cache folder.
"""

from decoding.native.build import NativeError, library
from decoding.native.step import NativeStep

__all__ = ["NativeError", "NativeStep", "library"]
