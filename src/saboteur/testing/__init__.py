"""Contracts that parts of Saboteur are tested against, for built-in and third-party parts alike.

Needs pytest (the extra ``test``). A target's own test module subclasses :class:`TargetContract`::

    class TestMyTarget(TargetContract):
        def open(self):
            return MyTarget(...)

        def open_changed(self):
            return MyTarget(other_weights, ...)

        def specs(self):
            return [MyFault(where="registers", model=BitFlip())]
"""

from saboteur.testing.targets import TargetContract, draw_faults

__all__ = ["TargetContract", "draw_faults"]
