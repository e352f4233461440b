"""Every way in which an inspection ends without a verdict, with its HTTP status and its stable code.

The path of a screen, and what may go wrong on it:

    body     BodyTooLarge, BodyTooSlow, IncompleteBody, InvalidRequest, UnsupportedMedia
    -> frame UnreadableImage, IncompleteImage, ImageTooLarge, ImageTooSmall, FrameSizeMismatch
    -> queue QueueFull, TooManyScreens, NotReady, DeadlineExceeded
    -> id    ScreenInProgress, Conflict, NotFound

And where another bundle is to be put in service: ReleaseMissing, BundleUnknown, BundleRefused, SwapInProgress,
VersionTaken.

    ServiceError
    +-- QueueFull
        +-- TooManyScreens     the same code: either way, the sender tries again later

An `engine.InferenceError` passes through as it is and becomes `inference_failed`. An error is never a
verdict: a broken service cannot be read as a pass.
"""

from typing import ClassVar


class ServiceError(Exception):
    """A failure that has an answer.

    Attributes:
        status: of the HTTP answer.
        code: stable name for machines; never changes its meaning.
        title: what the code means, for people; the same every time.
        detail: what happened this time, for people; safe to send to the client.
    """

    status: ClassVar[int]
    code: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class InvalidRequest(ServiceError):
    """A parameter is missing, or contradicts another."""

    status, code, title = 422, "invalid_request", "The request's parameters are not valid"


class IncompleteBody(ServiceError):
    """The connection closed, or the body is shorter than its header said."""

    status, code, title = 400, "incomplete_body", "The body did not arrive whole"


class BodyTooSlow(ServiceError):
    """The sender's deadline passed before its body was there, which is no fault of the service's."""

    status, code, title = 408, "body_too_slow", "The body did not arrive in time"


class BodyTooLarge(ServiceError):
    """More bytes than the service takes."""

    status, code, title = 413, "body_too_large", "The body has too many bytes"


class UnsupportedMedia(ServiceError):
    """A kind of image that the service does not read, or another than the one declared."""

    status, code, title = 415, "unsupported_media", "The kind of image is not supported"


class UnreadableImage(ServiceError):
    """No image, or one whose pixels have no documented grey value."""

    status, code, title = 422, "unreadable_image", "The image cannot be read"


class IncompleteImage(ServiceError):
    """The file ends before its last pixel; what is missing is never filled in."""

    status, code, title = 422, "incomplete_image", "The image is incomplete"


class ImageTooLarge(ServiceError):
    """More pixels, or more patches, than the service takes."""

    status, code, title = 413, "image_too_large", "The image has too many pixels"


class ImageTooSmall(ServiceError):
    """Smaller than one patch."""

    status, code, title = 422, "image_too_small", "The image is smaller than a patch"


class FrameSizeMismatch(ServiceError):
    """Another size than the one agreed for the line."""

    status, code, title = 422, "frame_size_mismatch", "The frame has another size than agreed"


class QueueFull(ServiceError):
    """No room for all the patches of the screen.

    Attributes:
        retry_after_s: when there will be room, by the rate measured.
    """

    status, code, title = 503, "queue_full", "The service is at its limit"

    def __init__(self, detail: str, *, retry_after_s: float) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class TooManyScreens(QueueFull):
    """No room to receive another screen."""


class NotReady(ServiceError):
    """The service is starting, stopping, or has lost what it needs.

    Attributes:
        retry_after_s: when to ask again; nobody knows how long a start or a repair takes, and who asks too early is
            refused once more.
    """

    retry_after_s: ClassVar[float] = 5.0
    status, code, title = 503, "not_ready", "The service is not ready"


class DeadlineExceeded(ServiceError):
    """The answer would come after the sender's deadline."""

    status, code, title = 504, "deadline_exceeded", "The deadline has passed"


class ScreenInProgress(ServiceError):
    """The same screen is being inspected.

    Attributes:
        retry_after_s: when to ask again; a frame that is sent again at once would only be refused again.
    """

    retry_after_s: ClassVar[float] = 1.0
    status, code, title = 409, "in_progress", "The screen is being inspected"


class Conflict(ServiceError):
    """The id was answered before, for another image."""

    status, code, title = 409, "conflict", "The id belongs to another image"


class ReleaseMissing(ServiceError):
    """A bundle that has not passed the release gate as it would run here."""

    status, code, title = 409, "release_missing", "The bundle has not passed the release gate"


class NotFound(ServiceError):
    """No such screen was answered."""

    status, code, title = 404, "not_found", "There is nothing at this address"


class BundleUnknown(ServiceError):
    """No bundle has this name, or none was active before."""

    status, code, title = 404, "bundle_unknown", "There is no such bundle"


class BundleRefused(ServiceError):
    """A bundle that is broken, does not fit the line or the device's memory, lacks its plan, or fails its test."""

    status, code, title = 422, "bundle_refused", "The bundle must not be served"


class SwapInProgress(ServiceError):
    """Another bundle is being put in service."""

    status, code, title = 409, "swap_in_progress", "Another bundle is being put in service"


class VersionTaken(ServiceError):
    """A bundle that calls itself what another was called: verdicts of both could not be told apart."""

    status, code, title = 409, "version_taken", "Another bundle was in service under this name and version"


def concrete_errors() -> tuple[type[ServiceError], ...]:
    """One class for each code, in the order of this file."""
    return tuple(ServiceError.__subclasses__())
