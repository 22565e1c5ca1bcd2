"""The service's errors, as one tree.

    ConvscopeError
    ├── ArtifactError             a model directory is missing, damaged or answers differently
    ├── SettingsError             an environment variable holds a value that is not allowed
    ├── RequestError              the request's head or connection is refused
    │   ├── MalformedRequest
    │   ├── HeadTooLarge
    │   ├── HeadTimeout
    │   ├── CrossOriginRefused
    │   └── TooManyConnections
    ├── UploadError               the request's body is refused
    │   ├── EmptyUpload
    │   ├── UploadTooLarge
    │   ├── UploadTimeout
    │   ├── TooManyImages
    │   ├── UnsupportedMediaType
    │   └── MalformedUpload
    ├── ImageError                the bytes are not an image that can be classified
    │   ├── NotAnImage
    │   ├── DamagedImage
    │   ├── UnsupportedImage
    │   └── TooManyPixels
    ├── NotFound                  the request names something that does not exist
    │   ├── UnknownModel
    │   ├── UnknownLayer
    │   ├── UnknownFilter
    │   ├── UnknownClass
    │   └── NothingToSee
    ├── WrongTask                 the model that the request names does something else
    ├── InvalidParameter          a query parameter holds a value that is not allowed
    ├── NotAcceptable             the client accepts none of the available formats
    ├── ScoringError              a scoring run cannot begin, go on or end
    ├── NotReady                  the process cannot serve all its models at the moment
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
    """The request's head or connection is refused."""


class MalformedRequest(RequestError):
    """The client did not send a valid HTTP/1.1 request."""


class HeadTooLarge(RequestError):
    """The request line and headers are larger than the limit."""


class HeadTimeout(RequestError):
    """The request line and headers did not arrive in time."""


class CrossOriginRefused(RequestError):
    """A browser asks whether a page of another origin may send a request, and it may not."""


class TooManyConnections(RequestError):
    """The limit of connections is reached, and none of them is idle."""


class UploadError(ConvscopeError):
    """The request's body is refused."""


class EmptyUpload(UploadError):
    """The body, or one of its parts, holds no bytes."""


class UploadTooLarge(UploadError):
    """The body, as announced or as received, is larger than the limit."""


class UploadTimeout(UploadError):
    """The body did not arrive in time."""


class TooManyImages(UploadError):
    """The request carries more images than the limit."""


class UnsupportedMediaType(UploadError):
    """The type or the encoding of the body, or of a file in it, is not supported."""


class MalformedUpload(UploadError):
    """The body does not follow the format that its Content-Type names."""


class ImageError(ConvscopeError):
    """The bytes are not an image that can be classified."""


class NotAnImage(ImageError):
    """The data do not start like any known image format."""


class DamagedImage(ImageError):
    """The format is known, but the data are cut short or broken."""


class UnsupportedImage(ImageError):
    """A valid image in a form that is not supported."""


class TooManyPixels(ImageError):
    """The header announces more pixels than the limit."""


class NotFound(ConvscopeError):
    """The request names something that does not exist."""


class UnknownModel(NotFound):
    """There is no such model, or no such version of it."""


class UnknownLayer(NotFound):
    """The model has no layer of this name whose filters can be shown."""


class UnknownFilter(NotFound):
    """The layer has fewer filters than that."""


class UnknownClass(NotFound):
    """The model knows no class of this name."""


class NothingToSee(NotFound):
    """The model was exported without the data to show."""


class WrongTask(ConvscopeError):
    """The model that the request names does something else than the resource offers."""


class InvalidParameter(ConvscopeError):
    """A query parameter holds a value that is not allowed."""


class NotAcceptable(ConvscopeError):
    """The client accepts none of the available media types."""


class ScoringError(ConvscopeError):
    """A scoring run cannot begin, go on or end: of its input, its results or its helpers."""


class NotReady(ConvscopeError):
    """The process cannot serve all its models at the moment."""


class PredictionError(ConvscopeError):
    """The model could not answer."""


class QueueFull(PredictionError):
    """The queue has no room for the request, or it would wait for too long."""


class DeadlineExceeded(PredictionError):
    """The request was not answered in time."""


class ShuttingDown(PredictionError):
    """The process accepts no new work because it is about to stop."""


class BackendFailed(PredictionError):
    """The runtime raised while it computed a batch."""
