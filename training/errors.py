"""All errors of training, as one tree. The command line prints the message alone.

TrainingError
├── DataError          the images are missing, damaged or too few
├── RecipeError        a value of the recipe is not allowed, or a name is unknown
├── RunError           a run's folder is in the way, missing, or of another recipe
├── Diverged           the loss is infinite or not a number
└── ExportError        the exported graphs do not agree, or the version exists
"""

from collections.abc import Sequence


class TrainingError(Exception):
    """Base of all errors of training."""


class DataError(TrainingError):
    """The images are missing, damaged or too few.

    Attributes:
        lines: the message for a terminal, with each fault of several in a line of its own.
    """

    def __init__(self, message: str, faults: Sequence[str] = ()) -> None:
        """Take what cannot be done, and the faults for which it cannot, if they are known."""
        super().__init__(f"{message}: {'; '.join(faults)}" if faults else message)
        several = len(faults) > 1
        self.lines = [f"{message}:", *(f"  {one}" for one in faults)] if several else [str(self)]


class RecipeError(TrainingError):
    """A value of the recipe is not allowed, or a name is unknown."""


class RunError(TrainingError):
    """A run's folder is in the way, missing, cannot be written, or is of another recipe."""


class Diverged(TrainingError):
    """The loss became infinite or not a number."""


class ExportError(TrainingError):
    """The exported graphs do not agree with the network, or the version exists."""
