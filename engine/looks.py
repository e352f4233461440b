"""How a bundle asks for its windows to be looked at besides once: at a glance before, again at borders, and turned."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.errors import BundleError
from engine.fields import Table

SECOND_LOOK_MOST = 0.5  # windows that a second look may add, for each that a screen has
TURNED_LOOK_MOST = 0.25  # share of a screen's windows that may be looked at turned, seven times more each


@dataclass(frozen=True, slots=True, kw_only=True)
class Glance:
    """Whether a small network glances at each window before the whole one looks; see `engine.glance`.

    Attributes:
        doubt_min: of the small network, from which the whole one looks, too; 0: it always does.
    """

    doubt_min: float

    def clears(self, doubt: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Which windows of doubts (n,) the whole network need not see; of one that is no doubt it must."""
        return np.asarray((doubt >= 0) & (doubt < self.doubt_min))

    @classmethod
    def parse(cls, table: Table) -> "Glance":
        """Of a manifest.

        Raises:
            BundleError: it has another form.
        """
        table.expect(cls.__slots__)
        return cls(doubt_min=table.number("doubt_min", low=0.0, high=1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondLook:
    """Whether the service looks again where a border of windows may cut a defect; see `engine.second_look`.

    Attributes:
        score_min: score from which a window that does not have a label is doubtful of it.
        ratio_max: windows that may be added at most, for each window of the screen; 0: no second look.
    """

    score_min: float
    ratio_max: float

    def most(self, windows: int) -> int:
        """Windows that may be added to so many."""
        return int(self.ratio_max * windows)

    @classmethod
    def parse(cls, table: Table) -> "SecondLook":
        """Of a manifest.

        Raises:
            BundleError: it has another form.
        """
        table.expect(cls.__slots__)
        return cls(
            score_min=table.number("score_min", low=0.0, high=1.0),
            ratio_max=table.number("ratio_max", low=0.0, high=SECOND_LOOK_MOST),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnedLook:
    """Whether windows of which the network is in doubt are looked at in all positions; see `engine.turned_look`.

    Attributes:
        score_min: score from which a window is doubtful of a label.
        score_max: score from which it is not any more.
        ratio_max: share of a screen's windows that may be, rounded up; 0: none.
    """

    score_min: float
    score_max: float
    ratio_max: float

    def most(self, windows: int) -> int:
        """Windows of so many that may be looked at turned."""
        return math.ceil(round(self.ratio_max * windows, 9))  # 30 tenths are three, whatever 0.1 is in binary

    @classmethod
    def parse(cls, table: Table) -> "TurnedLook":
        """Of a manifest.

        Raises:
            BundleError: it has another form.
        """
        table.expect(cls.__slots__)
        low = table.number("score_min", low=0.0, high=1.0)
        return cls(
            score_min=low,
            score_max=table.number("score_max", low=low, high=1.0),
            ratio_max=table.number("ratio_max", low=0.0, high=TURNED_LOOK_MOST),
        )


NO_GLANCE = Glance(doubt_min=0.0)
NO_SECOND_LOOK = SecondLook(score_min=0.0, ratio_max=0.0)
NO_TURNED_LOOK = TurnedLook(score_min=0.0, score_max=0.0, ratio_max=0.0)


def refuse_half_a_glance(asked: Glance, *, made: bool) -> None:
    """A glance is asked for where its graph is there, and nowhere else.

    Raises:
        BundleError: one is there without the other.
    """
    if made != (asked != NO_GLANCE):
        told = "has a graph that is not asked for" if made else "is asked for without its graph"
        raise BundleError(told, key="glance")
