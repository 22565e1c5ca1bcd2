"""All errors of training, as one tree. The command line prints the message alone.

TrainingError
├── DataError          the images are missing, damaged or too few
├── RecipeError        a value of the recipe is not allowed, or a name is unknown
├── RunError           a run's folder is in the way, missing, or of another recipe
├── Diverged           the loss is infinite or not a number
└── ExportError        the exported graphs do not agree, or the version exists
"""


class TrainingError(Exception):
    """Base of all errors of training."""


class DataError(TrainingError):
    """The images are missing, damaged or too few."""


class RecipeError(TrainingError):
    """A value of the recipe is not allowed, or a name is unknown."""


class RunError(TrainingError):
    """A run's folder is in the way, missing, cannot be written, or is of another recipe."""


class Diverged(TrainingError):
    """The loss became infinite or not a number."""


class ExportError(TrainingError):
    """The exported graphs do not agree with the network, or the version exists."""
