"""What several rooms ask of an argument, and how they count."""

from numbers import Integral


def whole(name: str, value, least: int = 1) -> int:
    """A whole number, not smaller than `least`.

    Raises:
        ValueError: for anything else, True and 1.0 included.

    >>> whole("epochs", 3)
    3
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} is a whole number, {least} or more, but got {value!r}")
    return int(value)


def counted(n: int, noun: str) -> str:
    """
    >>> counted(1, "epoch"), counted(2, "epoch")
    ('1 epoch', '2 epochs')
    """
    return f"{n} {noun}{'s' * (n != 1)}"
