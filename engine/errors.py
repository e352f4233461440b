"""What may go wrong with a bundle or its runtime. No HTTP words here: the service maps these to answers.

    EngineError
    +-- BundleError          a bundle that is incomplete, altered or contradicts itself
        +-- NotExported      a bundle that was not made in the precision that is asked for
    +-- RuntimeUnavailable   the runtime asked for is not installed or has no device
    +-- ParityError          an exported graph differs from the network it was made from
    +-- PlanError            TensorRT cannot or may not build a plan, or built one of another precision than asked for
    +-- InferenceError       the runtime failed on a batch, or answered something impossible
        +-- DeviceLost       the device fails at everything from now on, until it is recovered
        +-- OutOfMemory      the device's memory is full; less work, or the same later, may fit

Exceptions of the runtimes' own libraries stop in the file that imports them and become one of these.
"""


class EngineError(Exception):
    """Any failure of the engine; catch this to catch them all."""


class BundleError(EngineError):
    """A bundle that must not be served.

    Attributes:
        key: where in the bundle: a dotted manifest key (`labels.bubble.threshold`) or a file name.
        detail: what is wrong there, for people.
    """

    def __init__(self, detail: str, *, key: str) -> None:
        super().__init__(f"{key}: {detail}")
        self.detail = detail
        self.key = key


class NotExported(BundleError):
    """A bundle that has no features graph of the precision that is asked for."""


class RuntimeUnavailable(EngineError):
    """The runtime asked for cannot run on this machine."""


class ParityError(EngineError):
    """An exported graph does not compute what the network that it was made from computes."""


class InferenceError(EngineError):
    """A runtime failed on a batch, or its answer has the wrong form."""


class PlanError(EngineError):
    """TensorRT cannot or may not build a plan of the graph, or what it built is not what was asked for."""


class DeviceLost(InferenceError):
    """The device failed in a way that spoils all later work on it, until its backend's `recover` succeeds."""


class OutOfMemory(InferenceError):
    """The device's memory does not hold the work; a smaller batch, or the same one later, may fit."""
