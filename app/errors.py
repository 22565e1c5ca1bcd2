"""Everything that can go wrong in the service, as one tree.

    ConvscopeError
    ├── ArtifactError             a model directory is missing, damaged or answers differently
    ├── SettingsError             an environment variable holds a value that is not allowed
    ├── RequestError              the request's head, or its connection, cannot be taken
    │   ├── MalformedRequest
    │   ├── HeadTooLarge
    │   ├── HeadTimeout
    │   └── TooManyConnections
    ├── UploadError               the request's body cannot be taken
    │   ├── EmptyUpload
    │   ├── UploadTooLarge
    │   ├── UploadTimeout
    │   ├── TooManyImages
    │   ├── UnsupportedMediaType
    │   └── MalformedUpload
    ├── ImageError                the bytes are not a picture that can be classified
    │   ├── NotAnImage
    │   ├── DamagedImage
    │   ├── UnsupportedImage
    │   └── TooManyPixels
    ├── NotFound                  a name in the request stands for nothing here
    │   ├── UnknownModel
    │   ├── UnknownLayer
    │   ├── UnknownFilter
    │   ├── UnknownClass
    │   └── NothingToSee
    ├── InvalidParameter          a query parameter holds a value that is not allowed
    ├── NotAcceptable             no representation that the client accepts
    ├── NotReady                  the process cannot serve all its models at this moment
    └── PredictionError           the model could not answer
        ├── QueueFull
        ├── DeadlineExceeded
        ├── ShuttingDown
        └── BackendFailed

A message names the value and the limit. Status codes stand in `problems`, not here.
"""


class ConvscopeError(Exception):
    """Base of every error that the service raises on purpose."""


class ArtifactError(ConvscopeError):
    """A model directory is missing, damaged, or answers differently than at export."""


class SettingsError(ConvscopeError):
    """An environment variable holds a value that is not allowed."""


class RequestError(ConvscopeError):
    """The request's head, or its connection, cannot be taken."""


class MalformedRequest(RequestError):
    """What was sent is not HTTP, or not a form of it that is read."""


class HeadTooLarge(RequestError):
    """The request line and headers are over the limit."""


class HeadTimeout(RequestError):
    """The request line and headers did not arrive in the time that they are given."""


class TooManyConnections(RequestError):
    """As many connections are open, and at work, as may be."""


class UploadError(ConvscopeError):
    """The request's body cannot be taken."""


class EmptyUpload(UploadError):
    """The body, or one of its parts, holds no bytes."""


class UploadTooLarge(UploadError):
    """The body, announced or received, is over the limit."""


class UploadTimeout(UploadError):
    """The body did not arrive in the time that it is given."""


class TooManyImages(UploadError):
    """One request carries more images than it may."""


class UnsupportedMediaType(UploadError):
    """The Content-Type or Content-Encoding is not one that is read."""


class MalformedUpload(UploadError):
    """The body does not follow the format that its Content-Type names."""


class ImageError(ConvscopeError):
    """The bytes are not a picture that can be classified."""


class NotAnImage(ImageError):
    """No known image format starts like this."""


class DamagedImage(ImageError):
    """The format is known, but the data are cut short or broken."""


class UnsupportedImage(ImageError):
    """A sound image in a form that is not read."""


class TooManyPixels(ImageError):
    """The header announces more pixels than may be decoded."""


class NotFound(ConvscopeError):
    """A name in the request stands for nothing here."""


class UnknownModel(NotFound):
    """No such model, or no such version of it."""


class UnknownLayer(NotFound):
    """The model has no layer of this name whose filters can be shown."""


class UnknownFilter(NotFound):
    """The layer has fewer filters than that."""


class UnknownClass(NotFound):
    """The model knows no class of this name."""


class NothingToSee(NotFound):
    """The model's files do not hold what would be shown."""


class InvalidParameter(ConvscopeError):
    """A query parameter holds a value that is not allowed."""


class NotAcceptable(ConvscopeError):
    """None of the media types that the client accepts can be given."""


class NotReady(ConvscopeError):
    """The process cannot serve all its models at this moment."""


class PredictionError(ConvscopeError):
    """The model could not answer."""


class QueueFull(PredictionError):
    """More images wait than may wait."""


class DeadlineExceeded(PredictionError):
    """The answer was not there in the time that the request is given."""


class ShuttingDown(PredictionError):
    """The process takes no new work because it is about to stop."""


class BackendFailed(PredictionError):
    """The runtime raised while it computed a batch."""
