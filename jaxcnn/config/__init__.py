"""The config of a run: its schema, its checks, as plain data, and from a command line."""

from jaxcnn.config.checks import check_unread, parse_fold, parse_steps, type_name, validate
from jaxcnn.config.plain import RESUMABLE_FIELDS, changed_fields, flatten, from_dict, to_dict
from jaxcnn.config.schema import (
    MOST_STEPS,
    AugmentConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    EarlyStopConfig,
    FinetuneConfig,
    GroupsConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ProfileConfig,
    ScheduleConfig,
    TableConfig,
    TelemetryConfig,
)

__all__ = [
    "MOST_STEPS",
    "RESUMABLE_FIELDS",
    "AugmentConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EarlyStopConfig",
    "FinetuneConfig",
    "GroupsConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ProfileConfig",
    "ScheduleConfig",
    "TableConfig",
    "TelemetryConfig",
    "changed_fields",
    "check_unread",
    "flatten",
    "from_dict",
    "parse_fold",
    "parse_steps",
    "to_dict",
    "type_name",
    "validate",
]
