"""Every exception that the package raises on purpose.

A wrong value or type is a plain `ValueError` or `TypeError`. The classes below are for states that a caller may
want to tell apart; each is also the builtin exception that a caller who does not know this package would catch:

    CoeffTuningError
    ├── UnsupportedError (RuntimeError)         a backend was named and cannot serve the call
    ├── UnsupportedModelError (ValueError)      no binder serves the attention modules of this model
    ├── AdapterNotAppliedError (RuntimeError)   coefficients are attached and a forward pass did not use them
    ├── AdapterMismatchError (ValueError)       saved coefficients do not fit this model
    ├── AdapterFileError (ValueError)           an adapter file is missing, truncated or corrupt
    ├── CombinationError (ValueError)           coefficients and another PEFT method in an order that loses one
    ├── MergeError (ValueError)                 coefficients cannot be merged into the base weights
    ├── MissingDependencyError (ImportError)    an optional dependency is needed; says the pip command
    ├── DataError (ValueError)                  a data set, a file or a column of it cannot be used
    ├── RunError (RuntimeError)                 a run folder exists, is incomplete or cannot be written
    └── BenchError (ValueError)                 a benchmark cannot be run as asked, or found a wrong result
"""

from __future__ import annotations


class CoeffTuningError(Exception):
    """Base of every exception in this module."""


class UnsupportedError(CoeffTuningError, RuntimeError):
    """The backend that was asked for cannot serve this call."""


class UnsupportedModelError(CoeffTuningError, ValueError):
    """No binder serves the attention modules of this model."""


class AdapterNotAppliedError(CoeffTuningError, RuntimeError):
    """Coefficients are attached to modules that a forward pass did not use."""


class AdapterMismatchError(CoeffTuningError, ValueError):
    """The saved coefficients do not fit the model they are loaded into."""


class AdapterFileError(CoeffTuningError, ValueError):
    """An adapter file is missing, truncated or corrupt."""


class CombinationError(CoeffTuningError, ValueError):
    """Coefficients and another PEFT method were combined in an order that would lose one of them."""


class MergeError(CoeffTuningError, ValueError):
    """Coefficients cannot be merged into the weights of the base model."""


class MissingDependencyError(CoeffTuningError, ImportError):
    """An optional dependency is needed; the message holds the pip command that installs it."""


class DataError(CoeffTuningError, ValueError):
    """A data set, a file of it or a column of it cannot be used."""


class RunError(CoeffTuningError, RuntimeError):
    """A run folder exists already, is incomplete or cannot be written."""


class BenchError(CoeffTuningError, ValueError):
    """A benchmark cannot be run as asked, or a backend or model that it measured computes something wrong."""
