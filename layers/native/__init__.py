"""Parts of the layers on a CPU, in C++, each as one pass over its tensors.

The machine's C++ compiler builds them at first use, in some seconds, for this very processor; the result is kept in the
user's cache folder. Without a compiler the layers compute the same, to rounding, with torch's own operations.
"""
