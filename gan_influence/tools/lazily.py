"""The package's face: a public name is imported when it is first used, so that the command line answers without torch.

`gan_influence/__init__.py` says in which room each name lives; a module's `__getattr__` (PEP 562) does the rest.
"""

import sys
from importlib import import_module


def __getattr__(name: str):
    face = sys.modules[__package__.partition(".")[0]]
    if name == "__all__":
        return sorted(name for names in face.HOMES.values() for name in names)
    room = next((room for room, names in face.HOMES.items() if name in names), None)
    if room is None:
        raise AttributeError(f"module {face.__name__!r} has no attribute {name!r}")
    room = import_module(face.__name__ + room)
    value = vars(room).get(name) or import_module(f"{room.__name__}.{name}")
    setattr(face, name, value)
    return value


def __dir__() -> list[str]:
    return [*__getattr__("__all__"), "__version__"]
