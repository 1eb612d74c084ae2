"""The step of a decoder on a CPU, in C++.

The machine's C++ compiler builds it at first use, in some seconds, for this very processor; the result is kept in the
user's cache folder.
"""

from decoding.native.step import FLAGS, SOURCE, NativeStep, library
from layers.native.build import NativeError

__all__ = ["FLAGS", "SOURCE", "NativeError", "NativeStep", "library"]
