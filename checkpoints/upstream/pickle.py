"""Writes stand-ins into a pickle as objects of the classes that they stand for, without having those classes.

The counterpart of `checkpoints.pickled.unpickle`: what that reads as `StandIn` objects, this writes so that whoever has
the classes gets objects of them. No class is made, no module is imported or registered.
"""

from __future__ import annotations

import pickle
from typing import Any

from checkpoints.pickled.rebuild import Global, StandIn

# The standard library's pickler in Python: the compiled one insists on classes that can be imported.
PythonPickler: Any = pickle._Pickler


class StandInPickler(PythonPickler):
    """A pickler that knows stand-ins."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._classes: dict[str, Global] = {}  # one object a name, so that the memo knows it again

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if not isinstance(obj, StandIn | Global):
            super().save(obj, save_persistent_id)
        elif id(obj) in self.memo:
            self.write(self.get(self.memo[id(obj)][0]))
        elif isinstance(obj, Global):
            module, _, name = obj.path.rpartition(".")
            self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
            self.memoize(obj)
        else:
            self.save(self._classes.setdefault(obj.class_name, Global(obj.class_name, is_class=True)))
            self.save(obj.arguments)
            self.write(pickle.NEWOBJ)
            self.memoize(obj)
            self.save(obj.attributes)
            self.write(pickle.BUILD)


class StandInPickle:
    """What `torch.save` takes as `pickle_module`."""

    Pickler = StandInPickler
