"""Errors that users meet: each message names what was found, what is allowed and what to do."""


class QilDeployError(ValueError):
    """Base class of every error this project raises on purpose."""


class ConfigError(QilDeployError):
    """A quantization config or recipe that cannot be carried out."""


class DataError(QilDeployError):
    """A data set that is unknown, missing, empty or of the wrong shape."""


class OtherSchemaError(DataError):
    """A report of a schema that was not requested.

    Attributes:
        schema: the one in the file.
    """

    def __init__(self, message: str, schema: object) -> None:
        super().__init__(message)
        self.schema = schema


class CheckpointError(QilDeployError):
    """A checkpoint that is missing, damaged, truncated or of another schema."""


class UnsupportedModelError(QilDeployError):
    """A network with a module or operation that cannot be lowered."""


class ModelFileError(QilDeployError):
    """An ONNX file that is missing, damaged, or not one of ours where it has to be."""


class CertificateError(QilDeployError):
    """An exported graph that exceeds one of the certificate's bounds."""


class OutputError(QilDeployError):
    """An output that cannot be written."""


class TrainingError(QilDeployError):
    """Training that cannot continue: a loss that is infinite or NaN, a run state that does not fit."""


class TargetError(QilDeployError):
    """A target that is unknown, not set up, cannot run here, fails or stops answering."""
