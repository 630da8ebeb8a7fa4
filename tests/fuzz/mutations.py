"""Changes to the bytes of a file, a recipe or a command line."""

from __future__ import annotations

import random
import re

TOKENS = (
    b"\0", b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"../", b"/etc/passwd", b"[" * 3000, b"{" * 3000, b"1" * 5000,
    b"a" * 5000, b"1e999999999", b"nan", b"-1", b"0", b"18446744073709551616", b"\x1b[2J", b"\n", b'"', b"'",
    b"=", b"true", b"null", "é∞\u202e".encode(), b"os:_exit", b"this.s", b"--", b" ", b"8/0",
    b"1000000000000",
)  # fmt: skip
"""What readers stumble over."""
WORD = re.compile(rb"[\w.+-]+|\"[^\"]*\"|\[[^\]]*\]")
VALUES = (
    b"0", b"-1", b"1", b"3.5", b"nan", b"inf", b"1e999", b"true", b'"a"', b'""', b"[]", b"[1, 2]", b'["a"]',
    b"{}", b"9" * 20, b"9" * 5000, b"1979-05-27", b'"resnet18"', b'"os:_exit"', b'"this.s"', b'"1/0"', b"on",
    b"0x" + b"f" * 5000,
)  # fmt: skip
"""What may stand in place of a number or word, and leave the rest readable."""


def mutated(data: bytes, source: random.Random) -> bytes:
    """Return a changed copy: bytes or bits replaced, parts removed, repeated or moved, tokens inserted."""
    changed = bytearray(data)
    for _ in range(source.choice((1, 1, 1, 2, 4))):
        start = source.randrange(len(changed) + 1)
        length = min(source.choice((1, 1, 2, 4, 8, 30, 300)), len(changed) - start)
        part = bytes(changed[start : start + length])
        change = source.randrange(11)
        if change > 6 and (words := list(WORD.finditer(changed))):
            word = source.choice(words)
            changed[word.start() : word.end()] = source.choice(VALUES)
        elif change == 0:
            changed[start : start + length] = source.randbytes(length)
        elif change == 1 and part:
            changed[start] ^= 1 << source.randrange(8)
        elif change == 2:
            del changed[start : start + length]
        elif change == 3:
            changed[start:start] = part * source.choice((1, 2, 50))
        elif change == 4:
            changed[start : start + source.choice((0, length))] = source.choice(TOKENS)
        elif change == 5 and source.random() < 0.3:
            del changed[start:]
        else:
            other = source.randrange(len(changed) + 1)
            changed[other:other] = part
    return bytes(changed)
