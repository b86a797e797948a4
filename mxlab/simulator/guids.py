"""Guids that are derived, not stored: a number in, a uuid-shaped word out, and back.

A world of a million users keeps no index of its guids: the user, member and job that a guid stands for are read
off the guid itself, by a bijection of 64 bits (the finaliser of SplitMix64) and a check word.
"""

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def mix(word: int) -> int:
    """A well-scrambled 64-bit word, a different one for each 64-bit word (SplitMix64, Steele et al. 2014)."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & _MASK
    return word ^ (word >> 31)


def unmix(word: int) -> int:
    """The word that `mix` scrambled."""
    word = (word ^ (word >> 31) ^ (word >> 62)) * 0x319642B2D24D8EC3 & _MASK
    word = (word ^ (word >> 27) ^ (word >> 54)) * 0x96DE1B173F119089 & _MASK
    return word ^ (word >> 30) ^ (word >> 60)


def key(seed: int, *parts: int) -> int:
    """A 64-bit key for a thing of a seeded world."""
    word = mix(seed & _MASK)
    for part in parts:
        word = mix((word + _GOLDEN * (part + 1)) & _MASK)
    return word


class Guids:
    """MX's guids (``MBR-`` and a uuid) for the users, members, jobs and institutions of one seed."""

    def __init__(self, seed: int) -> None:
        self._salts = {prefix: key(seed, *prefix.encode()) for prefix in ("USR", "MBR", "JOB", "INS")}

    def make(self, prefix: str, user: int, slot: int = 0, number: int = 0) -> str:
        """The guid of a user, of its member at ``slot``, or of that member's job ``number``."""
        low = mix((user << 32 | slot << 24 | number) ^ self._salts[prefix])
        high = mix((low + self._salts[prefix]) & _MASK)
        text = f"{high:016x}{low:016x}"
        return f"{prefix}-{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    def read(self, prefix: str, guid: str) -> tuple[int, int, int] | None:
        """User, slot and number that a guid of this world stands for; None for any other text."""
        head, _, tail = guid.partition("-")
        if head != prefix or len(guid) != len(prefix) + 37:
            return None
        try:
            word = int(tail.replace("-", ""), 16)
        except ValueError:
            return None
        payload = unmix(word & _MASK) ^ self._salts[prefix]
        user, slot, number = payload >> 32, payload >> 24 & 0xFF, payload & 0xFFFFFF
        return (user, slot, number) if self.make(prefix, user, slot, number) == guid else None
