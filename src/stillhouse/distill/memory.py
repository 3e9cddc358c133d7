"""Keeps freed memory in the process, where the C library would give it back to the system.

A training step frees and allocates the same large tensors over and over. By default glibc maps and unmaps each of them,
and the page faults take up to half of a small network's step on CPU.
"""

from __future__ import annotations

import ctypes
import platform
from functools import cache

# From glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
TOP_PAD_BYTES = 64 << 20


@cache
def keep_freed_memory() -> bool:
    """Asks glibc to serve large blocks from its heap and to keep them; False with another C library.

    The process's peak stays its size until it ends, so this belongs into processes that train, one stage each.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    asked = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, TOP_PAD_BYTES))
    return all(libc.mallopt(name, value) == 1 for name, value in asked)
