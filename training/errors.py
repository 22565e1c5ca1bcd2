"""Everything that can go wrong offline, as one tree; the command line prints the message alone.

TrainingError
├── DataError          the images are missing, damaged or too few
├── RecipeError        a number of the recipe is not allowed, or the name is unknown
├── RunError           a run's directory is in the way, missing, or of another recipe
├── Diverged           the loss is no longer a number
└── ExportError        the exported graphs do not agree, or the place is taken
"""


class TrainingError(Exception):
    """Base of every error that training raises on purpose."""


class DataError(TrainingError):
    """The images are missing, damaged or too few."""


class RecipeError(TrainingError):
    """A number of the recipe is not allowed, or a name is unknown."""


class RunError(TrainingError):
    """A run's directory is in the way, missing, cannot be written, or is of another recipe."""


class Diverged(TrainingError):
    """The loss became infinite or not a number."""


class ExportError(TrainingError):
    """The exported graphs do not agree with the network, or the place is taken."""
